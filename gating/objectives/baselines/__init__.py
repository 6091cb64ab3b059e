"""Other methods of choosing the gates to close, the baselines of the exact budget."""
