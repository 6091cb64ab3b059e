"""Checkpoints from which training resumes bit-exactly."""

import math
import re
import shutil
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.io import TorchCheckpointIO

from gating.distributed.collectives import all_reduce_max, is_rank_zero
from gating.errors import InputError
from gating.structure.edits import own_part
from gating.tracking.position import log_position, return_to
from gating.training.module import FineTuning
from gating.training.shards import read_metadata, write_checkpoint

__all__ = [
    "AtomicCheckpointIO",
    "RunCheckpoint",
    "checkpoint_path",
    "found_checkpoints",
    "read_checkpoint",
    "remove_checkpoint",
    "why_unusable",
]

_STATE_KEY = "head_gating"
_NAME = re.compile(r"step-(\d+)\.ckpt")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint plugin that writes atomically and loads tensors and plain values only (``weights_only=True``)."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint beside its place, then move it there."""
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """Load a checkpoint to the CPU."""
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint to the CPU without running pickled code; of a folder of shards, all but the shards."""
    if path.is_dir():
        return read_metadata(path)
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return checkpoint


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint after ``step`` optimizer steps of the run."""
    return folder / f"step-{step}.ckpt"


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint: a file, or the folder of a sharded model."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def found_checkpoints(folder: Path) -> list[Path]:
    """Return the paths in a phase's folder that have the names of checkpoints, the latest first."""
    named = {path: _NAME.fullmatch(path.name) for path in folder.glob("step-*.ckpt")}
    steps = {path: int(name[1]) for path, name in named.items() if name}
    return sorted(steps, key=steps.__getitem__, reverse=True)


# For gating/run/folder, as long as it keeps records of checkpoints.
recorded_checkpoints = noted_checkpoints = found_checkpoints


def note_checkpoint(path: Path) -> None:
    """Do nothing: the name of a checkpoint is its record."""


def why_unusable(path: Path) -> str | None:
    """Return why a checkpoint is damaged or not one of the phase that its folder is named after; None if it is intact.

    A checkpoint is a zip archive, whose entries have checksums; that of a sharded model is a folder.
    """
    try:
        if not path.is_dir():
            with zipfile.ZipFile(path) as archive:
                if entry := archive.testzip():
                    return f"the checksum of {entry} does not match"
        phase = read_checkpoint(path)["phase"]
    except Exception as error:  # Of many types, by the place of the damage.
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None if phase == path.parent.name else f"not a checkpoint of the phase {path.parent.name}"


class RunCheckpoint(Callback):
    """Callback that saves checkpoints between two optimizer steps.

    There, validation is complete and no gradients are being accumulated. From checkpoints that ``ModelCheckpoint``
    saves, at the end of a batch or of validation, Lightning does not resume at the same batch (Lightning issues 19764,
    19617 and 20550).
    """

    def __init__(
        self, dirpath: str, *, every_n_steps: int | None = None, every_minutes: float | None = 10.0, keep: int = 2
    ) -> None:
        """Set when to save, in addition to after each validation and at the end of a phase.

        Args:
            dirpath: Folder of the phase's checkpoints.
            every_n_steps: Number of optimizer steps between checkpoints.
            every_minutes: Number of minutes between checkpoints.
            keep: Number of checkpoints of a phase to keep. With 1 there is no fallback for a damaged checkpoint.

        Raises:
            InputError: A number is not positive.
        """
        for name, value in (("every_n_steps", every_n_steps), ("every_minutes", every_minutes), ("keep", keep)):
            if value is not None and not value > 0:
                raise InputError(f"callbacks.checkpoint.{name}={value}: give a positive number.")
        self._folder, self._keep = Path(dirpath), keep
        self._steps, self._seconds = every_n_steps or math.inf, 60 * (every_minutes or math.inf)
        self._batches_that_stepped: int | None = None

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
            "log_position": log_position(trainer.loggers),
            "batches_that_stepped": trainer.fit_loop.epoch_loop._batches_that_stepped,
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Mapping[str, Any]
    ) -> None:
        """Drop later entries of the logs, and restore the batch count that Lightning does not restore."""
        return_to(trainer.loggers, checkpoint[_STATE_KEY]["log_position"])
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
            for other in (*set(saved).difference(kept), *self._folder.glob(".step-*.new")):
                remove_checkpoint(other)


def _is_finite(module: torch.nn.Module) -> bool:
    # Shards differ, so that processes could answer differently, and save a part of a checkpoint.
    is_finite = all(bool(own_part(parameter).isfinite().all()) for parameter in module.parameters())
    (has_others,) = all_reduce_max(int(not is_finite))
    return not has_others
