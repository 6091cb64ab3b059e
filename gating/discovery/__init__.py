"""How attention is found in a model, and how a removal is proven."""
