"""Sentence embeddings: models of sentence-transformers, their pooling, teachers and losses."""
