"""Runs that are killed at random moments and go on."""
