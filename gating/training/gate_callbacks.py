"""Observations of a run, of gates, scores and seconds: in its logs, its history and its checkpoints."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from gating.distributed.collectives import check_same
from gating.objectives.gate_metrics import open_amounts, quantity_of, spent_by_unit
from gating.objectives.search import Search
from gating.report.figures import gates_figure
from gating.report.results import History, Observation
from gating.report.summary import Summary
from gating.structure.layers import count_units
from gating.tracking.loggers import log_figure
from gating.training.module import FineTuning
from gating.units import UNITS


class GateMonitor(Callback):
    """Callback that logs the gates' state at every logged step, and a figure of them at every validation."""

    def __init__(self, history: History) -> None:
        """Args: ``history`` collects the state at each validation."""
        self.history = history

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any) -> None:
        """Log the numbers of open gates."""
        assert isinstance(pl_module, FineTuning)
        if pl_module.search is not None and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log_dict(pl_module.search.metrics())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the state to the history, and log a figure of the gates."""
        assert isinstance(pl_module, FineTuning)
        if trainer.sanity_checking:
            return
        history, search = self.history, pl_module.search
        step, metric = pl_module.step_in_run, float(trainer.callback_metrics[f"val/{pl_module.score.name}"])
        if search is None:
            has_cost = history.quantity == "cost"
            kept = sum(history.spent.values()) if has_cost else count_units(pl_module.model, history.quantity)
            history.observations.append(Observation(step, metric, kept, kept, kept))
            return
        gates, objective = search.gates, search.objective
        check_same(gates.log_alpha, "The location of the gates")
        history.quantity = quantity_of(gates, objective)
        amounts = open_amounts(gates, objective)
        history.observations.append(Observation(step, metric, *amounts, objective.target(gates)))
        if trainer.is_global_zero:
            _log_figure(trainer, search, step=step)

    def state_dict(self) -> dict[str, Any]:
        """Return the history for a checkpoint."""
        return self.history.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the history from a checkpoint."""
        self.history.load_state_dict(state_dict)


class RunClock(Callback):
    """Callback that saves the seconds of a run's stages in each checkpoint, so that a resumed run reports the sum."""

    def __init__(self, summary: Summary) -> None:
        """Args: ``summary`` has the seconds, those of the current phase so far among them."""
        self._summary = summary

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds so far for a checkpoint."""
        return {"seconds": self._summary.all_seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the seconds of earlier processes from a checkpoint."""
        self._summary.earlier_seconds = dict(state_dict["seconds"])


def log_kept_heads(
    loggers: Sequence[Logger], history: History, search: Search, *, kept: torch.Tensor | None, step: int
) -> None:
    """Log the gates after all steps of a search, with those of :meth:`Search.kept` as open, and note their cost."""
    metrics, gates = search.metrics(kept=kept), search.gates
    for logger in loggers:
        logger.log_metrics(metrics, step=step)
        logger.save()
    history.quantity = quantity_of(gates, search.objective)
    if history.quantity == "cost":
        history.spent = spent_by_unit(gates, search.objective, gates.values() > 0 if kept is None else kept)


def _log_figure(trainer: pl.Trainer, search: Search, *, step: int) -> None:
    """Log a figure of the gates to W&B and TensorBoard: the widths of blocks of many small units, and other gates."""
    gates = search.gates
    loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger | TensorBoardLogger)]
    if not loggers:
        return
    heads, neurons = {}, []
    counts = torch.tensor(gates.units_per_gate).split(gates.block_sizes)
    blocks = zip(gates.block_units, gates.by_block().items(), gates.open_by_block().values(), counts, strict=True)
    for unit, (name, values), num_open, numbers in blocks:
        if UNITS[unit].is_weighed:
            neurons.append((name, num_open, int(numbers.sum())))
        else:
            heads[name] = values.tolist()
    title = f"Gates after {step} steps: {gates.num_open()} heads open"
    figure = gates_figure(heads, title=title, neurons=neurons)
    name = "gates/units" if neurons else "gates/heads"
    for logger in loggers:
        log_figure(logger, name, figure, step=step)
