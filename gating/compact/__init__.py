"""How a compact model becomes a folder, and a folder a model again."""
