"""Compact folders loaded by other versions of transformers."""
