"""Texts as tokens: tokenizers, truncation, blocks."""
