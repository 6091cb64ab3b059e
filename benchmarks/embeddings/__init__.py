"""Sentence embeddings of smaller models: quality and speed."""
