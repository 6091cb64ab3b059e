"""Metrics of labels, tags, answers, texts and embeddings."""
