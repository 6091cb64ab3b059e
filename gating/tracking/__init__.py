"""Who records a run: Weights & Biases, CSV, and what is kept out of both."""
