"""Checkpoints from which training resumes bit-exactly: their times and their content.

A checkpoint is a file. That of a model which is cut over processes (FSDP2) is a folder with a file of each: a run
resumes with as many processes as before, so each saves and loads its own shards, and nothing is gathered.
"""

import math
import shutil
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed
from lightning_fabric.utilities.apply_func import apply_to_collection  # type: ignore[attr-defined]
from pydantic import PositiveFloat, PositiveInt
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from typing_extensions import override

from gating.distributed.collectives import all_reduce_max, gather_objects, is_rank_zero
from gating.errors import InputError
from gating.storage.files import (
    checkpoint_path,
    found_checkpoints,
    remove_checkpoint,
    replacing_file,
    unfinished_checkpoints,
)
from gating.structure.edits import own_part
from gating.training.module import FineTuning

_STATE_KEY = "head_gating"
# In the folder of a sharded model: what rank 0 saves, written last, so that a folder without it is not whole; and the
# name of the sizes of the other files in it, in bytes.
_METADATA, _SIZES = "meta.pt", "sizes"


def write_checkpoint(values: dict[str, Any], path: Path) -> None:
    """Write tensors and plain values to a file that is whole or not there."""
    with replacing_file(path) as new, new.open("wb") as file:
        torch.save(values, file)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint to the CPU without running pickled code; of a folder of shards, all but the shards.

    Raises:
        OSError: A folder is not whole.
    """
    is_folder = path.is_dir()
    checkpoint: dict[str, Any] = torch.load(path / _METADATA if is_folder else path, "cpu", weights_only=True)
    for name, size in checkpoint[_SIZES].items() if is_folder else ():
        if (path / name).stat().st_size != size:
            raise OSError(f"{path / name} is truncated.")
    return checkpoint


def why_unusable(path: Path) -> str | None:
    """Return why a checkpoint is damaged or not of the phase that its folder is named after; None if it is intact."""
    try:
        if not path.is_dir():
            with zipfile.ZipFile(path) as archive:
                if entry := archive.testzip():
                    return f"the checksum of {entry} does not match"
        phase = read_checkpoint(path)["phase"]
    except Exception as error:  # Of many types, by the place of the damage.
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None if phase == path.parent.name else f"not a checkpoint of the phase {path.parent.name}"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint plugin that writes atomically and loads tensors and plain values only (``weights_only=True``)."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint beside its place, then move it there."""
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """Load a checkpoint to the CPU."""
        return read_checkpoint(Path(path))


class RunCheckpoint(Callback):
    """Callback that saves checkpoints between two optimizer steps.

    There, validation is complete and no gradients are being accumulated. From checkpoints that ``ModelCheckpoint``
    saves, at the end of a batch or of validation, Lightning does not resume at the same batch (Lightning issues 19764,
    19617 and 20550).
    """

    def __init__(
        self,
        *,
        every_n_steps: PositiveInt | None = None,
        every_minutes: PositiveFloat | None = 10.0,
        keep: PositiveInt = 2,
    ) -> None:
        """Set when to save, in addition to after each validation and at the end of a phase.

        Args:
            every_n_steps: Number of optimizer steps between checkpoints.
            every_minutes: Number of minutes between checkpoints.
            keep: Number of checkpoints of a phase to keep. With 1 there is no fallback for a damaged checkpoint.
        """
        self._folder, self._keep = Path(), keep
        self._steps, self._seconds = every_n_steps or math.inf, 60 * (every_minutes or math.inf)
        self._batches_that_stepped: int | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the folder of the phase, which its trainer has."""
        self._folder = Path(trainer.default_root_dir)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count steps and minutes from here."""
        self._step = trainer.global_step
        self._note_saved(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Request a checkpoint before the next step."""
        if not trainer.sanity_checking:
            self.request()

    def request(self) -> None:
        """Request a checkpoint before the next step."""
        self._is_due = True

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any) -> None:
        """Save a checkpoint if one is due; all ranks decide alike."""
        if self._batches_that_stepped is not None:
            # In some cases Lightning counts the batch at which it resumes twice.
            trainer.fit_loop.epoch_loop._batches_that_stepped = self._batches_that_stepped
            self._batches_that_stepped = None
        if trainer.global_step == self._step:
            return  # Gradients are being accumulated.
        self._step = trainer.global_step
        is_late = time.monotonic() - self._saved_at > self._seconds
        if any(all_reduce_max(int(self._is_due or is_late or self._step - self._saved_step >= self._steps))):
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last checkpoint of the phase."""
        if trainer.global_step != self._saved_step:
            self._save(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Reset the progress of the batch that was fetched but not processed, and add the state of this run."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts |= dict.fromkeys(("ready", "started", "processed"), counts["completed"])
        progress["is_last_batch"] = False
        checkpoint["phase"] = self._folder.name
        checkpoint[_STATE_KEY] = {
            "batches_that_stepped": trainer.fit_loop.epoch_loop._batches_that_stepped,
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Mapping[str, Any]
    ) -> None:
        """Restore the batch count that Lightning does not restore."""
        self._batches_that_stepped = checkpoint[_STATE_KEY]["batches_that_stepped"]

    def _note_saved(self, trainer: pl.Trainer) -> None:
        self._saved_step, self._saved_at, self._is_due = trainer.global_step, time.monotonic(), False

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Save a checkpoint and remove old ones; skip it if weights are not finite, so that the last good one stays."""
        assert isinstance(module, FineTuning)
        self._note_saved(trainer)
        if not _is_finite(module):
            return
        for logger in trainer.loggers:
            logger.save()
        new = checkpoint_path(self._folder, module.step_in_run)
        trainer.save_checkpoint(new)
        if is_rank_zero():
            saved = found_checkpoints(self._folder)
            # Later ones are damaged: this run resumed from an earlier one. Hidden ones are of a killed process.
            kept = saved[(last := saved.index(new)) : last + self._keep]
            for other in (*set(saved).difference(kept), *unfinished_checkpoints(self._folder)):
                remove_checkpoint(other)


def _is_finite(module: nn.Module) -> bool:
    # Shards differ, so that processes could answer differently, and save a part of a checkpoint.
    is_finite = all(bool(own_part(parameter).isfinite().all()) for parameter in module.parameters())
    (has_others,) = all_reduce_max(int(not is_finite))
    return not has_others


def save_shards(path: Path, state: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Write a checkpoint as a folder that all processes share: each its own state, and rank 0 the metadata."""
    own, is_first = path / f"rank-{torch.distributed.get_rank()}.pt", torch.distributed.get_rank() == 0
    if is_first and path.exists():
        shutil.rmtree(path)
    torch.distributed.barrier()
    write_checkpoint(apply_to_collection(state, DTensor, DTensor.to_local), own)
    sizes = dict(gather_objects((own.name, own.stat().st_size)))
    if is_first:
        write_checkpoint({**metadata, _SIZES: sizes}, path / _METADATA)


def load_shards(path: Path) -> dict[str, Any]:
    """Return the shards that :func:`save_shards` saved of this process, on the CPU, without running pickled code."""
    before, now = len(read_checkpoint(path)[_SIZES]), torch.distributed.get_world_size()
    if before != now:
        raise InputError(
            f"{path} is of {before} processes, and this run has {now}: batches and shards would be others. Resume with "
            "as many as before (trainer.devices, trainer.num_nodes)."
        )
    return read_checkpoint(path / f"rank-{torch.distributed.get_rank()}.pt")


def load_own_state(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Load the state of a module that this process has saved, in place."""
    present = module.state_dict()
    module.load_state_dict({name: _cut_like(present[name], value) for name, value in state.items()})


def _cut_like(parameter: Any, value: Any) -> Any:
    """Return a value that was saved of a parameter or for it as a shard; numbers of steps and others as they are."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.dim() == 0:
        return value
    value, shape = value.to(own_part(parameter).device), parameter.shape
    mesh, placements, stride = parameter.device_mesh, parameter.placements, parameter.stride()
    return DTensor.from_local(value, mesh, placements, run_check=False, shape=shape, stride=stride)


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for models that are cut over all processes, with checkpoints of :func:`save_shards`.

    Buffers, such as the statistics of a ranking, can differ between processes, and each saves its own.
    """

    def __init__(self, num_processes: int) -> None:
        """Args: ``num_processes`` is the world size; by default Lightning would cut nothing."""
        super().__init__(data_parallel_size=num_processes, tensor_parallel_size=1)

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the state of the Lightning module, with the shards of this process."""
        assert self.model is not None
        return self.model.state_dict()

    @override
    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the state of an optimizer, with the shards of this process."""
        return optimizer.state_dict()

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Save a checkpoint; called by all processes."""
        save_shards(Path(self.broadcast(str(filepath))), checkpoint, {"phase": checkpoint.get("phase")})

    @override
    def load_checkpoint(self, checkpoint_path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        """Load weights and optimizers, and return the rest."""
        assert self.model is not None
        checkpoint = load_shards(Path(self.broadcast(str(checkpoint_path))))
        load_own_state(self.model, checkpoint.pop("state_dict"))
        for optimizer, state in zip(self.optimizers, checkpoint.pop("optimizer_states"), strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for number, values in state["state"].items():
                state["state"][number] = {name: _cut_like(parameters[number], value) for name, value in values.items()}
            optimizer.load_state_dict(state)
        return checkpoint
