"""Checks of a trainer before it changes anything."""

from typing import Any

import torch
from torch import Tensor
from transformers import Trainer
from transformers.utils.import_utils import is_accelerate_available

from gating.errors import InputError, MissingPackageError, OperationError
from gating.gates import HeadGates

__all__ = ["check_choice", "check_optimizers", "check_strategy", "require_accelerate"]


def require_accelerate() -> None:
    """Raise ``MissingPackageError`` if accelerate is not installed, which transformers' Trainer needs."""
    if not is_accelerate_available():
        raise MissingPackageError(
            "gating.integrations needs the package accelerate. Install it with: pip install 'head-gating[trainer]'"
        )


def check_optimizers(optimizers: Any) -> None:
    """Raise ``InputError`` if a scheduler is given: it has no rate for the group of the gates."""
    if optimizers is not None and optimizers[1] is not None:
        raise InputError(
            "optimizers=(optimizer, scheduler) leaves the gates without a learning rate of their own, because the "
            "scheduler is made before their group: give optimizers=(optimizer, None) and args.lr_scheduler_type."
        )


def check_strategy(trainer: Trainer) -> None:
    """Raise ``InputError`` if processes would not train whole copies of the model."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise InputError(
            "Heads are removed from whole weights, and FSDP and DeepSpeed shard them: leave both out, and start the "
            "script with torchrun or accelerate launch for data-parallel training (DDP)."
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
