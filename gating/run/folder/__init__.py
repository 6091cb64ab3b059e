"""The folder of a run: its contents, its owner, and resuming from it."""
