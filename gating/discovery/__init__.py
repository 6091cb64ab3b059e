"""How attention and feed-forward blocks are found."""
