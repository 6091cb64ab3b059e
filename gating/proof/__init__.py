"""How is a removal proven? Its outputs are compared with those of the masked model; it is undone if they differ."""
