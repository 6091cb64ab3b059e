"""Accuracy against heads kept: every method on the same data, with the same steps."""
