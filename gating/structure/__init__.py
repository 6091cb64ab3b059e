"""Places of attention heads and neurons in a model, and their removal."""
