"""Models to train: pretrained or new, with or without adapters."""
