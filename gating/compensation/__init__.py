"""Models made smaller without training: units ranked in rounds, and output projections solved in closed form."""
