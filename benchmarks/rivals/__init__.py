"""What people use instead, on the same models: ``python -m benchmarks.rivals``."""
