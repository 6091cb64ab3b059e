"""The discovery of attention and feed-forward blocks in any model."""
