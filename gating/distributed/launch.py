"""The processes of a run, one for each device: what there may be, starting them, and what only the first one does.

The first process prepares and checks everything alone and then starts the others, which run the same command again;
under torchrun or SLURM they are there from the beginning. Each trains on a part of every batch, gradients are averaged,
and all have the same weights and gates at every step.
"""

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException

from gating.distributed.collectives import is_distributed
from gating.distributed.watchdog import WatchedDDP, stop_children
from gating.errors import InputError

__all__ = [
    "check_processes",
    "root_device",
    "start_processes",
    "stop_processes",
]

# How long a process waits for another one. Nothing that only one of them does takes longer.
_TIMEOUT = timedelta(minutes=10)
_SHARDED = ("fsdp", "modelparallel", "model_parallel", "deepspeed")

# Arguments of the trainer that a run gives itself, and the settings for what they would do.
_OF_RUNS = {
    "logger": "choose logger=wandb or logger=csv",
    "callbacks": "add callbacks.NAME._target_=CLASS",
    "enable_checkpointing": "choose callbacks=none for a run without checkpoints",
    "default_root_dir": "give output_dir=FOLDER",
}

# Whether the other processes, which this one has started, were told to stop.
_are_stopped = False


def check_processes(trainer: Mapping[str, Any]) -> int:
    """Return how many processes a run has.

    Args:
        trainer: Settings of the trainer, ``accelerator`` and ``devices`` among them.

    Raises:
        ValueError: A setting would have no effect, or the strategy does not go with the removal of heads, phases would
            not have their steps, Lightning does not take the settings, the devices are not there, or another number of
            processes has been started already.
    """
    for name, instead in _OF_RUNS.items():
        if trainer.get(name) not in (None, True):
            raise InputError(f"trainer.{name}={trainer[name]} would have no effect, as each run sets it: {instead}.")
    for name in ("fast_dev_run", "overfit_batches"):
        if trainer.get(name):
            raise InputError(
                f"trainer.{name}={trainer[name]} replaces the number of steps of each phase, after which heads are "
                "removed; use debug=fast for a quick run."
            )
    _check_strategy(trainer.get("strategy", "auto"))
    tried = _try_trainer(trainer)
    num_processes = tried.num_nodes * tried.num_devices
    there = torch.distributed.get_world_size() if is_distributed() else int(os.environ.get("WORLD_SIZE", num_processes))
    if there != num_processes:
        raise InputError(
            f"trainer.devices={trainer['devices']} makes {num_processes} process(es), but {there} have been started; "
            "let trainer.devices times trainer.num_nodes be their number, with trainer=ddp if there are several."
        )
    return num_processes


def start_processes(trainer: Mapping[str, Any], num_processes: int) -> None:
    """Start the other processes, unless they are there already, and connect all of them.

    Args:
        trainer: Settings of the trainer, which takes over these processes.
        num_processes: What :func:`check_processes` has found.
    """
    global _are_stopped
    if _are_stopped:
        # The job of a sweep that they were started in has failed.
        torch.distributed.destroy_process_group()
        _are_stopped = False
    if num_processes == 1 or torch.distributed.is_initialized():
        return
    fabric = Fabric(
        accelerator=trainer["accelerator"],
        devices=trainer["devices"],
        num_nodes=trainer.get("num_nodes", 1),
        strategy=WatchedDDP(timeout=_TIMEOUT),
    )
    fabric.launch()


def root_device(trainer: Mapping[str, Any]) -> torch.device:
    """Return the device that this process will train on."""
    return _try_trainer(trainer).strategy.root_device


def stop_processes() -> None:
    """End the processes that this one has started: it has failed, and they would wait for it."""
    global _are_stopped
    _are_stopped = stop_children()


def _try_trainer(trainer: Mapping[str, Any]) -> pl.Trainer:
    """Make a trainer for a moment, which also shows what is wrong with its settings before anything is loaded."""
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "strategy": "auto"}
    # What describes an object is left out: plugins, profilers.
    plain = {name: value for name, value in trainer.items() if "_target_" not in f"{name}{value}"}
    options = plain | silent
    try:
        return pl.Trainer(**options)
    except (MisconfigurationException, ImportError, RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split()).rstrip(".!")
        raise InputError(
            f"The trainer's settings, with trainer.accelerator={trainer['accelerator']} and "
            f"trainer.devices={trainer['devices']}, cannot be used here: {reason}. Correct or leave out what it names."
        ) from error


def _check_strategy(strategy: object) -> None:
    """Refuse strategies that cut weights into parts, or whose processes end with a phase."""
    name = str(strategy["_target_"] if isinstance(strategy, Mapping) else strategy).rpartition(".")[2].lower()
    if name.startswith(_SHARDED):
        raise InputError(
            f"trainer.strategy={name}: heads are removed from whole weight matrices, which this strategy cuts into "
            "parts; use trainer=ddp, and gradient_checkpointing=true or a smaller data.batch_size with "
            "trainer.accumulate_grad_batches=2 where memory is short."
        )
    if name != "auto" and (not name.startswith("ddp") or any(way in name for way in ("spawn", "fork", "notebook"))):
        raise InputError(
            f"trainer.strategy={name}: a run takes its processes from one phase to the next, which is possible with "
            "auto and ddp; use trainer=ddp for several devices."
        )
