"""Dense models from whose outputs a model learns: loaded, checked, asked in each training step, and the loss."""
