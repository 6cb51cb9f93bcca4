"""The issue's registration protocol, shared by tests and benchmarks: images by the other integrator, noise, random starts."""
