"""Sweeps: their jobs, failed ones among them, and the decision at the end."""
