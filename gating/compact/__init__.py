"""How a compact model is saved and loaded."""
