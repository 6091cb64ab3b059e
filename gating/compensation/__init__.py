"""Models made smaller without training: units ranked in rounds, and the projections that are left solved in closed form."""
