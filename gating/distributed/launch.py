"""Start of the other processes of a run, and checks of the trainer's settings.

Rank 0 prepares and checks everything alone and then starts the other ranks, which run the same command again; torchrun
and SLURM start all ranks at once. Each rank trains on a shard of every batch, and gradients are averaged: weights and
gates are the same in all ranks at every step.
"""

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
import torch.distributed
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException

from gating.distributed.collectives import is_distributed
from gating.distributed.watchdog import WatchedDDP, stop_children
from gating.errors import InputError

# Limit of each collective. Nothing that a single rank does meanwhile takes longer: of a sharded model, rank 0 writes
# whole files.
_TIMEOUT, _TIMEOUT_OF_SHARDED = timedelta(minutes=10), timedelta(hours=2)
# Name of the strategy that cuts models over all processes.
_SHARDED = "fsdp"

# Precisions of training with FSDP2; gates are in float32.
_PRECISIONS = ("32-true", "32", "bf16-mixed")

# Whether the processes that this one started have been stopped.
_are_stopped = False


class Devices(NamedTuple):
    """Devices of a run; this process trains on ``root``, and FSDP2 cuts a model that ``is_sharded``."""

    num_processes: int
    root: torch.device
    is_sharded: bool = False


def check_devices(trainer: Mapping[str, Any]) -> Devices:
    """Check the trainer's settings, and return the devices that they choose."""
    for name in ("fast_dev_run", "overfit_batches"):
        if trainer.get(name):
            raise InputError(
                f"trainer.{name}={trainer[name]} replaces the number of steps of each phase, after which heads are "
                "removed; use debug=fast for a quick run."
            )
    _check_strategy(trainer.get("strategy", "auto"))
    is_sharded = trainer.get("strategy") == _SHARDED
    precision = str(trainer.get("precision", "32-true"))
    if is_sharded and precision not in _PRECISIONS:
        raise InputError(f"trainer.precision={precision} cannot train with trainer=fsdp: use 32-true or bf16-mixed.")
    tried = _try_trainer(trainer)
    num_processes = tried.num_nodes * tried.num_devices
    started = (
        torch.distributed.get_world_size() if is_distributed() else int(os.environ.get("WORLD_SIZE", num_processes))
    )
    if started != num_processes:
        raise InputError(
            f"trainer.devices={trainer['devices']} makes {num_processes} process(es), but {started} have been started; "
            "set trainer.devices and trainer.num_nodes so that their product is this number, with trainer=ddp or "
            "trainer=fsdp if it is above 1."
        )
    if is_sharded and num_processes == 1:
        raise InputError(
            f"trainer=fsdp cuts the model over several processes, and trainer.devices={trainer['devices']} starts one: "
            "give trainer.devices=2 or more, or use trainer=gpu, or trainer=default on a CPU."
        )
    if is_sharded and trainer["accelerator"] == "cpu" and torch.accelerator.is_available():
        raise InputError(
            "trainer.accelerator=cpu: transformers puts shards on this machine's GPU. Leave it out, or hide the GPU "
            "from this command with CUDA_VISIBLE_DEVICES=-1."
        )
    return Devices(num_processes, tried.strategy.root_device, is_sharded)


def start_processes(trainer: Mapping[str, Any], num_processes: int) -> None:
    """Start the other ranks, unless they are running, and initialize the process group, which the trainer uses."""
    global _are_stopped
    if _are_stopped:
        # The previous job of a sweep has failed.
        torch.distributed.destroy_process_group()
        _are_stopped = False
    if num_processes == 1 or torch.distributed.is_initialized():
        return
    fabric = Fabric(
        accelerator=trainer["accelerator"],
        devices=trainer["devices"],
        num_nodes=trainer.get("num_nodes", 1),
        strategy=WatchedDDP(timeout=_TIMEOUT_OF_SHARDED if trainer.get("strategy") == _SHARDED else _TIMEOUT),
    )
    fabric.launch()


def stop_processes() -> None:
    """Stop the processes that this one started, which would wait for it after its failure."""
    global _are_stopped
    _are_stopped = stop_children()


def _try_trainer(trainer: Mapping[str, Any]) -> pl.Trainer:
    """Return a trainer of these settings, or raise ``InputError`` where Lightning refuses them."""
    # Lightning has no function that resolves devices or validates arguments: only the constructor does both.
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "strategy": "auto"}
    # Descriptions of objects, such as plugins and profilers, are left out.
    plain = {name: value for name, value in trainer.items() if name != "_target_" and not _describes_object(value)}
    options = plain | silent
    try:
        return pl.Trainer(**options)
    except (MisconfigurationException, ImportError, RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split()).rstrip(".!")
        raise InputError(
            f"The trainer's settings, with trainer.accelerator={trainer['accelerator']} and "
            f"trainer.devices={trainer['devices']}, cannot be used here: {reason}. Correct or leave out what it names."
        ) from error


def _describes_object(value: object) -> bool:
    """Return whether a setting has a ``_target_``, at any depth."""
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(_describes_object, value.values()))
    return isinstance(value, Sequence) and not isinstance(value, str) and any(map(_describes_object, value))


def _check_strategy(strategy: object) -> None:
    """Refuse strategies that shard weights in another way than FSDP2, or that stop their processes after each phase."""
    if strategy == _SHARDED:
        return
    name = str(strategy["_target_"] if isinstance(strategy, Mapping) else strategy).rpartition(".")[2].lower()
    if name != "auto" and (not name.startswith("ddp") or any(kind in name for kind in ("spawn", "fork", "notebook"))):
        raise InputError(
            f"trainer.strategy={name}: processes must outlive a phase, and heads be rows of whole weights, as with "
            "trainer=ddp for several devices, and trainer=fsdp for a model that outgrows one."
        )
