"""Changes of a model: gates finalized, heads pruned, size and speed measured."""
