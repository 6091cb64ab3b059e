"""Measurements; nothing in here is asserted."""
