"""Inputs that are made for a model: texts, images, sounds and series, from its signature and configuration."""
