"""How a compact model is saved, loaded and exported."""
