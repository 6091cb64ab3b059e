"""A choice between runs: their trade-off of score and speed, as a table and a picture."""
