"""Observations during training, of gates, scores and seconds, and the early end of a converged search."""

import math
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import nn

from gating.distributed.collectives import check_same
from gating.objectives.gate_metrics import open_amounts, quantity_of, spent_by_unit
from gating.objectives.search import Search
from gating.report.figures import gates_figure
from gating.report.results import History, Observation
from gating.report.summary import Summary
from gating.tracking.loggers import log_figure
from gating.training.module import FineTuning
from gating.units import UNITS

__all__ = ["GateMonitor", "RunClock", "SearchEnd", "log_kept_heads", "record_spent"]


class GateMonitor(Callback):
    """Callback that logs the gates' state at every logged step, and a figure of them at every validation."""

    def __init__(self, history: History) -> None:
        """Args: ``history`` collects the state at each validation."""
        self.history = history

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the numbers of open gates."""
        assert isinstance(pl_module, FineTuning)
        if pl_module.search is not None and _is_logged(trainer):
            pl_module.log_dict(pl_module.search.metrics())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the state to the history, and log a figure of the gates to W&B and TensorBoard."""
        assert isinstance(pl_module, FineTuning)
        if trainer.sanity_checking:
            return
        metric = float(trainer.callback_metrics[f"val/{pl_module.score.name}"])
        search = pl_module.search
        if search is None:
            kept = _kept_amount(pl_module.model, self.history)
            self.history.observations.append(Observation(pl_module.step_in_run, metric, kept, kept, kept))
            return
        gates, objective = search.gates, search.objective
        check_same(gates.log_alpha, "The location of the gates")
        self.history.quantity = quantity_of(gates, objective)
        expected, num_open = open_amounts(gates, objective)
        observation = Observation(pl_module.step_in_run, metric, expected, num_open, objective.target(gates))
        self.history.observations.append(observation)
        if trainer.is_global_zero:
            _log_figure(trainer, search, step=observation.step)

    def state_dict(self) -> dict[str, Any]:
        """Return the history for a checkpoint."""
        return self.history.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the history from a checkpoint."""
        self.history.load_state_dict(state_dict)


class SearchEnd(Callback):
    """Callback that ends the search when the gates have converged; recovery gets the remaining steps."""

    def __init__(self, search: Search) -> None:
        """Args: ``search`` is the search to end."""
        self.search = search

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once if the loaded checkpoint was saved at the end of the search."""
        trainer.should_stop = trainer.should_stop or self.search.reason is not None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the gates for convergence at every logged step."""
        step, last = trainer.global_step, trainer.max_steps
        reason = self.search.check_end(step, last, is_due=_is_logged(trainer))
        # After the last step Lightning ends by itself; told to stop, it would validate once more.
        trainer.should_stop = trainer.should_stop or (reason is not None and step < last)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the search for a checkpoint, which has gates and objective in the module."""
        return self.search.state_dict(modules=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of the search from a checkpoint."""
        self.search.load_state_dict(state_dict)


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


def log_kept_heads(loggers: Sequence[Logger], search: Search, *, kept: torch.Tensor | None, step: int) -> None:
    """Log the state of the gates after all steps of a search, with those of :meth:`Search.kept` counted as open."""
    metrics = search.metrics(kept=kept)
    for logger in loggers:
        logger.log_metrics(metrics, step=step)
        logger.save()


def record_spent(history: History, search: Search, *, kept: torch.Tensor | None) -> None:
    """Add the quantity of the budget, and the cost of the gates of :meth:`Search.kept`, to the history of a search."""
    gates = search.gates
    history.quantity = quantity_of(gates, search.objective)
    if history.quantity == "cost":
        history.spent = spent_by_unit(gates, search.objective, gates.values() > 0 if kept is None else kept)


def _is_logged(trainer: pl.Trainer) -> bool:
    return trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined,no-any-return]


def _kept_amount(model: nn.Module, history: History) -> float:
    """Return the quantity of a history for a model without gates."""
    if history.quantity == "cost":
        return sum(history.spent.values())
    return UNITS[history.quantity].count(model)


def _log_figure(trainer: pl.Trainer, search: Search, *, step: int) -> None:
    gates, objective = search.gates, search.objective
    loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger | TensorBoardLogger)]
    if not loggers:
        return
    # The figure shows numbers of many small units, and each gate of others.
    has_many = {name: UNITS[unit].is_weighed for name, unit in zip(gates.block_names, gates.block_units, strict=True)}
    heads = {name: values.tolist() for name, values in gates.by_block().items() if not has_many[name]}
    counts = torch.tensor(gates.units_per_gate).split(gates.block_sizes)
    neurons = [
        (name, num_open, int(numbers.sum()))
        for (name, num_open), numbers in zip(gates.open_by_block().items(), counts, strict=True)
        if has_many[name]
    ]
    is_cost = quantity_of(gates, objective) == "cost"
    figure = gates_figure(
        heads,
        title=f"Gates after {step} steps: {gates.num_open()} heads open",
        neurons=neurons,
        spent=spent_by_unit(gates, objective, gates.values() > 0) if is_cost else None,
        target=objective.target(gates) if is_cost else math.nan,
    )
    name = "gates/units" if neurons else "gates/heads"
    for logger in loggers:
        log_figure(logger, name, figure, step=step)
