"""What is known of the attention and feed-forward classes of transformers: tables of their layouts."""
