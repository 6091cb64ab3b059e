"""Callbacks of one training phase: gate metrics, progress bar, divergence and early stops."""
