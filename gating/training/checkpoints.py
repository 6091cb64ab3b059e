"""Checkpoints from which training resumes bit-exactly."""

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
from gating.storage.files import (
    checkpoint_path,
    found_checkpoints,
    remove_checkpoint,
    replacing_file,
    unfinished_checkpoints,
)
from gating.structure.edits import own_part
from gating.training.module import FineTuning

__all__ = ["AtomicCheckpointIO", "RunCheckpoint", "read_checkpoint", "why_unusable"]

_STATE_KEY = "head_gating"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint plugin that writes atomically and loads tensors and plain values only (``weights_only=True``)."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint beside its place, then move it there."""
        with replacing_file(Path(path)) as new, new.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """Load a checkpoint to the CPU."""
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint to the CPU without running pickled code; of a folder of shards, all but the shards."""
    if path.is_dir():
        from gating.training.shards import read_metadata

        return read_metadata(path)
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return checkpoint


def why_unusable(path: Path) -> str | None:
    """Return why a checkpoint is damaged or not one of the phase that its folder is named after; None if it is intact.

    A checkpoint is a zip archive, whose entries have checksums; that of a sharded model is a folder.
    """
    try:
        if path.is_dir():
            checkpoint: Any = read_checkpoint(path)
        else:
            with zipfile.ZipFile(path) as archive:
                entry = archive.testzip()
            if entry is not None:
                return f"the checksum of {entry} does not match"
            checkpoint = torch.load(path, "cpu", weights_only=True, mmap=True)
    except Exception as error:  # Of many types, by the place of the damage.
        return (str(error).splitlines() or [type(error).__name__])[0]
    phase = checkpoint.get("phase") if isinstance(checkpoint, dict) else None
    return None if phase == path.parent.name else f"not a checkpoint of the phase {path.parent.name}"


class RunCheckpoint(Callback):
    """Callback that saves checkpoints between two optimizer steps.

    There, validation is complete and no gradients are being accumulated. From checkpoints that ``ModelCheckpoint``
    saves, at the end of a batch or of validation, Lightning does not resume at the same batch (Lightning issues 19764,
    19617 and 20550).
    """

    def __init__(self, *, every_n_steps: int | None = None, every_minutes: float | None = 10.0, keep: int = 2) -> None:
        """Set when to save, in addition to after each validation and at the end of a phase.

        Args:
            every_n_steps: Number of optimizer steps between checkpoints.
            every_minutes: Number of minutes between checkpoints.
            keep: Number of checkpoints of a phase to keep. With 1 there is no fallback for a damaged checkpoint.

        Raises:
            InputError: A number is not positive.
        """
        for name, value in (("every_n_steps", every_n_steps), ("every_minutes", every_minutes), ("keep", keep)):
            if value is not None and not value > 0:
                raise InputError(f"callbacks.checkpoint.{name}={value}: give a positive number.")
        self._folder = Path()
        self._every_n_steps = every_n_steps
        self._seconds = None if every_minutes is None else 60 * every_minutes
        self._keep = keep
        self._is_between_steps = self._is_due = False
        self._batches_that_stepped: int | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the folder of the phase, which its trainer has."""
        self._folder = Path(trainer.default_root_dir)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count steps and minutes from here."""
        self._step = self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()
        self._is_due = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Request a checkpoint before the next step."""
        if not trainer.sanity_checking:
            self.request()

    def request(self) -> None:
        """Request a checkpoint before the next step."""
        self._is_due = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save a checkpoint if one is due; all ranks decide alike."""
        if self._batches_that_stepped is not None:
            # In some cases Lightning counts the batch at which it resumes twice.
            trainer.fit_loop.epoch_loop._batches_that_stepped = self._batches_that_stepped
            self._batches_that_stepped = None
        if trainer.global_step == self._step:
            return  # Gradients are being accumulated.
        self._step = trainer.global_step
        is_late = self._seconds is not None and time.monotonic() - self._saved_at > self._seconds
        has_steps = self._every_n_steps is not None and self._step - self._saved_step >= self._every_n_steps
        if any(all_reduce_max(int(is_late or has_steps or self._is_due))):
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last checkpoint of the phase."""
        if trainer.global_step != self._saved_step:
            self._save(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Reset the progress of the batch that was fetched but not processed, and add the state of this run."""
        if not self._is_between_steps:
            return  # Saved by another callback; runs do not resume from it.
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

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Save a checkpoint and remove old ones; skip it if weights are not finite, so that the last good one stays."""
        assert isinstance(module, FineTuning)
        self._saved_step, self._saved_at, self._is_due = trainer.global_step, time.monotonic(), False
        if not _is_finite(module):
            return
        for logger in trainer.loggers:
            logger.save()
        new = checkpoint_path(self._folder, module.step_in_run)
        self._is_between_steps = True
        try:
            trainer.save_checkpoint(new)
        finally:
            self._is_between_steps = False
        if is_rank_zero():
            saved = found_checkpoints(self._folder)
            last = saved.index(new)
            # Later ones are damaged: this run resumed from an earlier one. Hidden ones are of a killed process.
            for other in (*saved[:last], *saved[last + self._keep :], *unfinished_checkpoints(self._folder)):
                remove_checkpoint(other)


def _is_finite(module: torch.nn.Module) -> bool:
    # Shards differ, so that processes could answer differently, and save a part of a checkpoint.
    is_finite = all(bool(own_part(parameter).isfinite().all()) for parameter in module.parameters())
    (has_others,) = all_reduce_max(int(not is_finite))
    return not has_others
