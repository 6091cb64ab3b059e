"""Texts as tokens: tokenizers, truncation."""
