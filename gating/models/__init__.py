"""Where a model comes from: a hub, a folder, or new weights; with adapters or without."""
