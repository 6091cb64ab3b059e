"""Compact models in serving runtimes: files and folders for them, checked there."""
