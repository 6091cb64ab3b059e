"""Changes of a model: gates finalized, heads pruned, size and speed measured, and the budget of a speed-up."""
