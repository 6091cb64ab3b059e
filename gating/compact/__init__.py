"""The saving and loading of compact models."""
