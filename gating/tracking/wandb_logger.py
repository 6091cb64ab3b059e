"""Lightning's W&B logger, with failures of W&B turned into one warning."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import wandb
from pytorch_lightning.loggers import WandbLogger

from gating.tracking.redaction import hidden_arguments
from gating.tracking.wandb_parts import cut_off, is_uploaded, next_row

__all__ = ["TolerantWandbLogger"]

# Name of the number of rows in a position.
_ROWS = "wandb_rows"

_log = logging.getLogger(__name__)


def _tolerant(method: Callable[..., None]) -> Callable[..., None]:
    """Wrap a method of the logger: its first error becomes a warning, and later calls do nothing."""

    @functools.wraps(method)
    def call(self: "TolerantWandbLogger", *args: Any, **kwargs: Any) -> None:
        if self.is_broken:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self.is_broken = True
            reason = str(error).strip() or type(error).__name__
            _log.warning(f"W&B has failed ({reason}). The run continues without it; the CSV file has its numbers.")

    return call


class TolerantWandbLogger(WandbLogger):
    """W&B logger that stops logging when W&B fails, instead of raising an error.

    Attributes:
        is_broken: Whether W&B has failed.
    """

    def __init__(self, **options: Any) -> None:
        """Args: ``options`` are those of Lightning's ``WandbLogger``."""
        super().__init__(**options)
        self.is_broken = False
        self._earlier: list[Path] = []
        self._num_uploaded = 0
        # wandb warns about it, since it is deprecated.
        self._wandb_init.pop("anonymous", None)

    @property
    def experiment(self) -> Any:
        """The W&B run, initialized at the first use."""
        # wandb records sys.argv then.
        with hidden_arguments() if self._experiment is None else nullcontext():
            return super().experiment

    def enter(self, earlier: Sequence[Path]) -> None:
        """Set the parts of this W&B run that earlier processes wrote."""
        self._earlier = list(earlier)

    def position(self) -> dict[str, int]:
        """Return the number of rows that the run has logged so far; nothing if W&B has failed."""
        return {} if self.is_broken else {_ROWS: int(self.experiment.step) - self._num_uploaded}

    @_tolerant
    def return_to(self, position: Mapping[str, int]) -> None:
        """Continue the rows of earlier processes at a position, so that no step is there twice.

        What was logged after it is removed from the parts that wait for an upload. Rows that the server has already
        cannot be taken back: they are not logged again.
        """
        earlier, self._earlier = self._earlier, []
        if not earlier:
            return
        run = self.experiment
        uploaded = max([int(run.step), *(next_row(part) for part in earlier if is_uploaded(part))])
        if position and _ROWS not in position:
            # A process without W&B has written the checkpoint: this one continues after the last row.
            rows = max([uploaded, *map(next_row, earlier)])
        else:
            rows = position.get(_ROWS, 0)
        for part in earlier:
            if not is_uploaded(part):
                cut_off(part, rows=rows)
        self._num_uploaded = max(0, uploaded - rows)
        if int(run.step) < (start := max(rows, uploaded)):
            run.log({}, step=start)

    @_tolerant
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a row, unless the server has it already."""
        if self._num_uploaded:
            self._num_uploaded -= 1
            return
        super().log_metrics(metrics, step)

    @_tolerant
    def log_outcome(self, numbers: dict[str, float], compact_folder: Path) -> None:
        """Add numbers to the W&B summary and, online, log the compact model as an artifact."""
        run = self.experiment
        run.summary.update(numbers)
        if run.offline:
            return
        megabytes = sum(path.stat().st_size for path in compact_folder.iterdir()) / 1e6
        artifact = wandb.Artifact(f"compact-{run.id}", type="model")
        artifact.add_dir(str(compact_folder))
        # Wait here, as long as a slow connection needs: finish() has a short timeout.
        run.log_artifact(artifact).wait(timeout=int(60 + megabytes))

    log_hyperparams = _tolerant(WandbLogger.log_hyperparams)
    log_image = _tolerant(WandbLogger.log_image)
    log_table = _tolerant(WandbLogger.log_table)
    after_save_checkpoint = _tolerant(WandbLogger.after_save_checkpoint)
    finalize = _tolerant(WandbLogger.finalize)
