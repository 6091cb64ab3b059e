"""How one phase is trained: the Lightning module, optimizers, checkpoints and signals."""
