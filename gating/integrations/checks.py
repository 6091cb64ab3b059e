"""Checks of a trainer before it changes anything."""

import inspect
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor
from transformers import Trainer
from transformers.utils.import_utils import is_accelerate_available

from gating.errors import InputError, MissingPackageError, OperationError
from gating.gates import HeadGates, inject_gates
from gating.integrations.wrappers import base_model
from gating.objectives.base import check_objective
from gating.objectives.search import Convergence
from gating.storage.files import check_free
from gating.vocabulary import check_known, check_vocabulary, vocabulary_size

__all__ = [
    "check_arguments",
    "check_choice",
    "check_frozen",
    "check_place",
    "check_strategy",
    "check_trainer",
]

# Rows that tell whether a tokenizer knows the texts.
_ROWS = 1000


def check_arguments(
    *,
    objective: object,
    recovery: object,
    gate_lr: float | None,
    multiplier_lr: float,
    gate_options: Mapping[str, Any],
    convergence: object,
    freeze_weights: object,
    restart_schedule: object,
    optimizers: Any,
) -> None:
    """Raise ``InputError`` if an argument of a trainer with gates has a value that cannot be used.

    Raises:
        MissingPackageError: accelerate is not installed, which transformers' Trainer needs.
    """
    check_objective(objective)
    if not _is_number(recovery) or not 0 <= recovery < 1:
        raise InputError(f"recovery={recovery} is not a share of the steps: give a number from 0 to below 1.")
    for name, rate in (("gate_lr", gate_lr), ("multiplier_lr", multiplier_lr)):
        if rate is not None and (not _is_number(rate) or not 0 < rate < math.inf):
            raise InputError(f"{name}={rate!r} is not a learning rate: give a number above 0, such as 0.1.")
    known = [name for name in inspect.signature(inject_gates).parameters if name != "model"]
    if unknown := sorted(set(gate_options) - set(known)):
        raise InputError(f"gate_options has {unknown[0]!r}: inject_gates takes {', '.join(known)}.")
    if convergence is not None and not isinstance(convergence, Convergence):
        raise InputError(f"convergence={convergence!r} is no criterion: give gating.Convergence(), or leave it out.")
    if freeze_weights not in (True, False, "search"):
        raise InputError(f"freeze_weights={freeze_weights!r} is neither True nor False: give one of them, or 'search'.")
    if not isinstance(restart_schedule, bool):
        raise InputError(f"restart_schedule={restart_schedule!r} is neither True nor False: give one of them.")
    if not is_accelerate_available():
        raise MissingPackageError(
            "gating.integrations needs the package accelerate. Install it with: pip install 'head-gating[trainer]'"
        )
    # A scheduler has no rate for the group of the gates.
    if optimizers is not None and optimizers[1] is not None:
        raise InputError(
            "optimizers=(optimizer, scheduler) leaves the gates without a learning rate of their own, because the "
            "scheduler is made before their group: give optimizers=(optimizer, None) and args.lr_scheduler_type."
        )


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_trainer(trainer: Trainer, *, has_adapters: bool) -> None:
    """Raise ``InputError`` if a trainer cannot train its model, which may have adapters, with gates."""
    check_strategy(trainer)
    _check_tokenizer(trainer)
    # TRL makes no reference of its own for a model with adapters. This one would have gates, and lose its heads.
    has_reference = getattr(trainer, "ref_model", trainer) is not None or getattr(trainer, "beta", None) == 0
    if has_adapters and not has_reference:
        raise InputError(
            f"{type(trainer).__name__} would take the trained model without its adapters as the reference, which loses "
            "its heads: give ref_model=..., a copy of the model before the training."
        )


def check_frozen(freeze_weights: object, *, recovery: float, has_adapters: bool) -> None:
    """Raise ``InputError`` for a recovery in which nothing would be trained."""
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


def _check_tokenizer(trainer: Trainer) -> None:
    """Raise ``InputError`` if the tokenizer of a trainer is not the model's, or does not know its texts."""
    tokenizer: Any = trainer.processing_class
    if tokenizer is None or not hasattr(tokenizer, "all_special_ids"):
        return
    model: Any = trainer.model
    check_vocabulary(tokenizer, size=vocabulary_size(base_model(model)), name="processing_class")
    rows: Any = trainer.train_dataset
    if "input_ids" in (getattr(rows, "column_names", None) or ()) and hasattr(rows, "__len__"):
        ids = list(_numbers_in(rows.select(range(min(len(rows), _ROWS)))["input_ids"]))
        if ids:
            check_known(tokenizer, torch.tensor(ids), name="train_dataset")


def _numbers_in(values: Any) -> Iterator[int]:
    """Yield the numbers in nested lists, which may be of different lengths, as those of multiple choice."""
    for value in values:
        if hasattr(value, "__iter__"):
            yield from _numbers_in(value)
        elif value is not None:
            yield int(value)


def check_place(folder: Path, *, overwrite: bool, checkpoints: str | None) -> None:
    """Check that a compact model could be saved in a folder at the end of a training; change nothing.

    Args:
        folder: The folder.
        overwrite: Whether what is there may be renamed.
        checkpoints: Folder of the checkpoints.

    Raises:
        FileExistsError: The folder is not empty and ``overwrite`` is false.
        InputError: It is or holds the folder of the checkpoints, or is a checkpoint or inside of one.
    """
    place, other = folder.resolve(), Path(checkpoints or "").resolve()
    name = place.relative_to(other).parts[0] if checkpoints and place != other and other in place.parents else ""
    if checkpoints and (place in (other, *other.parents) or re.match(r"(tmp-)?checkpoint-|runs$", name)):
        problem = f"is {name}, a folder of the trainer, in" if name else "is or holds"
        raise InputError(
            f"output_dir={folder} {problem} args.output_dir={checkpoints}, the folder of the checkpoints: give another "
            f"one, such as {Path(checkpoints) / 'compact'}."
        )
    check_free(folder, overwrite=overwrite, setting="output_dir")


def check_choice(accelerator: Any, gates: HeadGates, kept: Tensor | None) -> None:
    """Raise ``OperationError`` if processes would remove different units."""
    choice = (gates.values() > 0 if kept is None else kept).to(gates.log_alpha.device, torch.float32)
    choices = accelerator.gather(choice.unsqueeze(0))
    if not bool((choices == choice).all()):
        raise OperationError(
            "The processes of this training would keep different heads. Use the same model, data and seed in each."
        )
