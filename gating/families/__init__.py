"""Tables of the layouts of the attention and feed-forward classes of transformers."""
