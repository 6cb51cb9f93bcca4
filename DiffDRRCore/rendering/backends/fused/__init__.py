"""What the fused backends (cpu, cuda) share: the grid they work on, torch's custom operators, the tracer."""
