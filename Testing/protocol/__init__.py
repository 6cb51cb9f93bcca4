"""Registration cases shared by tests and benchmarks: real and simulated X-rays with a known answer, random starts."""
