"""Where attention heads and neurons are in a model and how they are removed."""
