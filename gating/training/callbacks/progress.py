"""Progress bars, with the time left: over a whole phase of training, and over an evaluation."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm

from gating.data.batches import Batch
from gating.distributed.collectives import is_rank_zero
from gating.gates import HeadGates
from gating.objectives import Objective
from gating.objectives.gate_metrics import open_amounts, quantity_of
from gating.training.module import FineTuning


def watched(batches: Iterable[Batch], *, title: str, total: int) -> Iterator[Batch]:
    """Yield ``total`` batches; a terminal of rank 0 shows a bar with the title and the time left."""
    yield from _make_bar(title, total, iterable=batches, leave=False)


def _make_bar(title: str, total: int, **options: Any) -> Tqdm:
    """Return a bar that is shown in a terminal of rank 0."""
    is_shown = is_rank_zero() and sys.stdout is not None and sys.stdout.isatty()
    return Tqdm(desc=title, total=total, file=sys.stdout, disable=not is_shown, dynamic_ncols=True, **options)


class PhaseProgressBar(ProgressBar):
    """Progress bar with steps, time left, loss and open units, and one line for each validation.

    Lightning's own bars begin again with each epoch.
    """

    def __init__(self, phase: str) -> None:
        """Args: ``phase`` is the displayed name."""
        super().__init__()
        self._phase = phase
        self._bar: Tqdm | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the bar."""
        self._bar = _make_bar(self._phase, trainer.max_steps, initial=trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any) -> None:
        """Update the bar."""
        assert self._bar is not None
        assert isinstance(pl_module, FineTuning)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            status = f"loss {float(trainer.callback_metrics.get('train/loss', float('nan'))):.3f}"
            if (search := pl_module.search) is not None:
                status += f"  {describe_progress(search.gates, search.objective)}"
            self._bar.set_postfix_str(status, refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the validation metric."""
        assert isinstance(pl_module, FineTuning)
        if self._bar is None or not trainer.is_global_zero:
            return
        metric = pl_module.score.name
        value = float(trainer.callback_metrics[f"val/{metric}"])
        line = f"{self._phase} step {trainer.global_step}/{trainer.max_steps}: validation {metric} {value:.4f}"
        if pl_module.search is not None:
            line += f", {describe_open(pl_module.search.gates)} open"
        with self._bar.external_write_mode():
            print(line)

    def disable(self) -> None:
        """Do nothing: only rank 0 shows the bar."""

    def _stop(self, *_: Any, **__: Any) -> None:
        """Stop the bar, which restores the terminal."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    on_train_end = on_exception = _stop


def describe_open(gates: HeadGates) -> str:
    """Return the number of open units, as in ``40 of 72 heads and 3,072 of 9,216 neurons``."""
    return " and ".join(f"{gates.count_open(unit):,} of {gates.total(unit):,} {unit}" for unit in gates.units)


def describe_progress(gates: HeadGates, objective: Objective) -> str:
    """Return the expected amount of open units and its target, as in ``heads 40.3 → 18``."""
    quantity, target = quantity_of(gates, objective), objective.target(gates)
    expected, _ = open_amounts(gates, objective)
    now, goal = (f"{expected:.1f}", f"{target:.0f}") if quantity != "cost" else (f"{expected:.1%}", f"{target:.1%}")
    return f"{quantity} {now}" + (f" → {goal}" if target == target else "")
