"""Data that a model is trained on: sources, columns, labels, splits, tokens, batches."""
