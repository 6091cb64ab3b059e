"""The training of one phase: the Lightning module, optimizers, checkpoints and signals."""
