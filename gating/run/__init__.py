"""A run: configured, prepared, trained, resumed and exported."""
