"""Models made smaller without training: units ranked in rounds, and what is left solved in closed form."""
