"""Which gates close by other methods? The baselines of the exact budget."""
