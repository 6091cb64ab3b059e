"""The training of one phase: the Lightning module, optimizers, callbacks, checkpoints and signals."""
