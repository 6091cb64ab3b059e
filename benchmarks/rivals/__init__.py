"""Other libraries on the same models: ``python -m benchmarks.rivals``."""
