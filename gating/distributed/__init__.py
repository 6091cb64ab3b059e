"""Processes of a run, one for each device: their start, exchange of values and end."""
