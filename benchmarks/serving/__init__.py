"""Compact models in other runtimes: their tokens, caches, quantization, and speed."""
