"""How attention and feed-forward blocks are found, and how a removal is proven."""
