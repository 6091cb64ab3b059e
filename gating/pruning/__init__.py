"""How a model is changed: gates finalized, heads pruned, size and speed measured."""
