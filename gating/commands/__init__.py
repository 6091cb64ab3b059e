"""Commands beside training: a module that runs each."""
