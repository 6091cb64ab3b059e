"""Compact classes: the parts of the file that travels, the record, its limits, and the file's composition."""
