"""Sentence embeddings of sentence-transformers: the files beside a transformer, its pooling, and losses."""
