"""Lightning's logger for Weights & Biases, made so that an outage of W&B costs its pictures and nothing else."""

import functools
import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import wandb
from pytorch_lightning.loggers import WandbLogger

from gating.tracking.redaction import hidden_arguments

__all__ = ["TolerantWandbLogger"]

_log = logging.getLogger(__name__)


def _tolerant(method: Callable[..., None]) -> Callable[..., None]:
    """Make a method of the logger one that says once that it cannot, and from then on does nothing."""

    @functools.wraps(method)
    def call(self: "TolerantWandbLogger", *args: Any, **kwargs: Any) -> None:
        if self.is_broken:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self.is_broken = True
            reason = str(error).strip() or type(error).__name__
            _log.warning(f"W&B has failed ({reason}). The run goes on without it; the CSV file has its numbers.")

    return call


class TolerantWandbLogger(WandbLogger):
    """Logs as long as W&B works.

    Attributes:
        is_broken: Whether W&B has failed.
    """

    def __init__(self, **options: Any) -> None:
        """Args: those of Lightning's logger."""
        super().__init__(**options)
        self.is_broken = False
        # W&B has stopped to accept it and warns about it.
        self._wandb_init.pop("anonymous", None)

    @property
    def experiment(self) -> Any:
        """The W&B run, begun at the first use; W&B notes the program's arguments then."""
        with hidden_arguments() if self._experiment is None else nullcontext():
            return super().experiment

    @_tolerant
    def log_outcome(self, numbers: dict[str, float], compact_folder: Path) -> None:
        """Put numbers into the summary and, online, the compact model into an artifact.

        Args:
            numbers: What was measured, by the names of the summary.
            compact_folder: The saved compact model.
        """
        run = self.experiment
        run.summary.update(numbers)
        if run.offline:
            return
        megabytes = sum(path.stat().st_size for path in compact_folder.iterdir()) / 1e6
        artifact = wandb.Artifact(f"compact-{run.id}", type="model")
        artifact.add_dir(str(compact_folder))
        # Here, where it may take as long as a slow line needs; at the end W&B is not waited for that long.
        run.log_artifact(artifact).wait(timeout=int(60 + megabytes))

    log_metrics = _tolerant(WandbLogger.log_metrics)
    log_hyperparams = _tolerant(WandbLogger.log_hyperparams)
    log_image = _tolerant(WandbLogger.log_image)
    log_table = _tolerant(WandbLogger.log_table)
    after_save_checkpoint = _tolerant(WandbLogger.after_save_checkpoint)
    finalize = _tolerant(WandbLogger.finalize)
