"""How predictions are scored: one file for each kind of prediction."""
