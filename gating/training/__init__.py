"""How one phase is trained: the Lightning module, optimizers, distillation, checkpoints and signals."""
