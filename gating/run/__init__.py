"""How a run is configured, prepared, trained, resumed and exported."""
