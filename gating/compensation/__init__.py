"""Models made smaller without training: units ranked once, and the projections that are left solved in closed form."""
