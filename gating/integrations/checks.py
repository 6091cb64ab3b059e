"""Checks of a trainer before it changes anything."""

from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from gating.errors import InputError, OperationError
from gating.gates import HeadGates

__all__ = ["check_arguments", "check_choice", "check_strategy", "check_trainer"]


def check_arguments(*, recovery: float, optimizers: Any) -> None:
    """Raise ``InputError`` for a recovery that is no share of the steps, or a scheduler without a rate of the gates."""
    if not 0 <= recovery < 1:
        raise InputError(f"recovery={recovery} is not a share of the steps: give a number from 0 to below 1.")
    if optimizers is not None and optimizers[1] is not None:
        raise InputError(
            "optimizers=(optimizer, scheduler) leaves the gates without a learning rate of their own, because the "
            "scheduler is made before their group: give optimizers=(optimizer, None) and args.lr_scheduler_type."
        )


def check_trainer(trainer: Trainer, *, freeze_weights: object, recovery: float, has_adapters: bool) -> None:
    """Raise ``InputError`` if a trainer cannot train its model, which may have adapters, in search and recovery."""
    check_strategy(trainer)
    # TRL makes no reference of its own for a model with adapters. This one would have gates, and lose its heads.
    has_reference = getattr(trainer, "ref_model", trainer) is not None or getattr(trainer, "beta", None) == 0
    if has_adapters and not has_reference:
        raise InputError(
            f"{type(trainer).__name__} would take the trained model without its adapters as the reference, which loses "
            "its heads: give ref_model=..., a copy of the model before the training."
        )
    if freeze_weights is True and recovery and not has_adapters:
        raise InputError(
            f"freeze_weights=True leaves nothing to train in the recovery, and recovery={recovery}: give recovery=0, "
            "or freeze_weights='search' for a recovery that trains the weights, or a model with adapters."
        )


def check_strategy(trainer: Trainer) -> None:
    """Raise ``InputError`` if processes would not train whole copies of the model."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise InputError(
            "Heads are removed from whole weights, and FSDP and DeepSpeed shard them: leave both out, and start the "
            "script with torchrun or accelerate launch for data-parallel training (DDP). Sharded training is a run of "
            "train.py with trainer=fsdp, or a loop of your own with gating.sharding."
        )
    if trainer.args.n_gpu > 1:
        raise InputError(
            f"{trainer.args.n_gpu} GPUs in one process would get copies of the model without its gates "
            "(nn.DataParallel): start the script with torchrun, or choose one GPU with CUDA_VISIBLE_DEVICES."
        )


def check_choice(accelerator: Any, gates: HeadGates, kept: Tensor | None) -> None:
    """Raise ``OperationError`` if processes would remove different units."""
    choice = (gates.values() > 0 if kept is None else kept).to(gates.log_alpha.device, torch.float32)
    choices = accelerator.gather(choice.unsqueeze(0))
    if not bool((choices == choice).all()):
        raise OperationError(
            "The processes of this training would keep different heads. Use the same model, data and seed in each."
        )
