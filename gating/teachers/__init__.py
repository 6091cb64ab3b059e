"""Dense models from whose outputs a model learns: loaded, checked, and asked in each training step."""
