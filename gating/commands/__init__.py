"""Commands beside training: their options in one module, and a module that runs each."""
