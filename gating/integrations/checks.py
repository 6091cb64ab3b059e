"""Checks of a trainer before its model gets gates, and of the choice that its processes make."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from gating.errors import InputError, OperationError
from gating.gates import HeadGates

__all__ = ["check_choice", "check_trainer", "refuse"]


def refuse(problems: Mapping[str, object]) -> None:
    """Raise ``InputError`` with the first sentence whose value is true."""
    for problem, is_present in problems.items():
        if is_present:
            raise InputError(problem)


def check_trainer(trainer: Trainer, *, recovery: float, freeze_weights: object, has_adapters: bool) -> None:
    """Raise ``InputError`` if a trainer cannot train its model, which may have adapters, in search and recovery."""
    # TRL makes no reference of its own for a model with adapters. This one would have gates, and lose its heads.
    has_reference = getattr(trainer, "ref_model", trainer) is not None or getattr(trainer, "beta", None) == 0
    refuse(
        {
            f"recovery={recovery} is not a share of the steps: give a number from 0 to below 1.": not 0 <= recovery < 1,
            "optimizers= has no learning rate for gates, and parameters that will be gone: give args.optim, or "
            "optimizer_cls_and_kwargs=(cls, options).": trainer.optimizer or trainer.lr_scheduler,
            "Heads are removed from whole weights, and FSDP and DeepSpeed shard them: start the script with torchrun "
            "or accelerate launch for data-parallel training (DDP), or train by train.py with trainer=fsdp.": (
                trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
            ),
            f"{trainer.args.n_gpu} GPUs in one process would get copies of the model without its gates "
            "(nn.DataParallel): start the script with torchrun, or choose one GPU with CUDA_VISIBLE_DEVICES.": (
                trainer.args.n_gpu > 1
            ),
            f"{type(trainer).__name__} would take the trained model without its adapters as the reference, which loses "
            "its heads: give ref_model=..., a copy of the model before the training.": (
                has_adapters and not has_reference
            ),
            "freeze_weights=True leaves nothing to train in the recovery: give recovery=0, or freeze_weights='search' "
            "for a recovery that trains the weights, or a model with adapters.": (
                freeze_weights is True and recovery and not has_adapters
            ),
        }
    )


def check_choice(accelerator: Any, gates: HeadGates, kept: Tensor | None) -> None:
    """Raise ``OperationError`` if processes would remove different units."""
    choice = (gates.values() > 0 if kept is None else kept).to(gates.log_alpha.device, torch.float32)
    if not bool((accelerator.gather(choice.unsqueeze(0)) == choice).all()):
        raise OperationError(
            "The processes of this training would keep different heads. Use the same model, data and seed in each."
        )
