"""Training on top of the core: data, tasks, the Lightning module, its callbacks and loggers."""
