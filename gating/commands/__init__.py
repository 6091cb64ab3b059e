"""Commands beside training, one per module: a parser of its options, and a function that runs it."""
