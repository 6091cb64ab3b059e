"""Rankings of heads and neurons, and the rounds in which those that rank lowest close."""
