"""Metrics of gates during training, and the early end of a converged search."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import nn

from gating.distributed.collectives import check_same
from gating.gates import HeadGates
from gating.objectives import Objective
from gating.objectives.convergence import Convergence
from gating.pruning.measure import count_heads, count_neurons
from gating.report.figures import gates_figure
from gating.report.gate_metrics import gate_metrics, open_amounts, quantity_of, spent_by_unit
from gating.report.history import History, Observation
from gating.tracking.tensorboard_log import log_figure
from gating.training.module import FineTuning

__all__ = ["GateMonitor", "SearchEnd", "log_kept_heads", "record_spent"]


class GateMonitor(Callback):
    """Callback that logs the gates' state at every logged step, and a figure of them at every validation."""

    def __init__(self, history: History) -> None:
        """Args: ``history`` collects the state at each validation."""
        self.history = history
        self._is_first_step = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note whether the run begins here: Lightning logs no step before the first interval is full."""
        assert isinstance(pl_module, FineTuning)
        self._is_first_step = pl_module.step_in_run == 0 and trainer.log_every_n_steps > 1  # type: ignore[attr-defined]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the numbers of open gates."""
        assert isinstance(pl_module, FineTuning)
        if pl_module.objective is not None and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log_dict(gate_metrics(pl_module.gates, pl_module.objective))
        if self._is_first_step:
            self._is_first_step = False
            _log_first_step(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the state to the history, and log a figure of the gates to W&B and TensorBoard."""
        assert isinstance(pl_module, FineTuning)
        if trainer.sanity_checking:
            return
        metric = float(trainer.callback_metrics[f"val/{pl_module.score.name}"])
        if pl_module.objective is None:
            kept = _kept_amount(pl_module.model, self.history)
            self.history.observations.append(Observation(pl_module.step_in_run, metric, kept, kept, kept))
            return
        gates, objective = pl_module.gates, pl_module.objective
        check_same(gates.log_alpha, "The location of the gates")
        self.history.quantity = quantity_of(gates)
        expected, num_open = open_amounts(gates, objective)
        observation = Observation(pl_module.step_in_run, metric, expected, num_open, objective.target(gates))
        self.history.observations.append(observation)
        self.history.gate_values.append({name: z.tolist() for name, z in gates.by_block().items()})
        if trainer.is_global_zero:
            _log_figure(trainer, gates, objective, step=observation.step)

    def state_dict(self) -> dict[str, Any]:
        """Return the history for a checkpoint."""
        return self.history.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the history from a checkpoint."""
        self.history.load_state_dict(state_dict)


class SearchEnd(Callback):
    """Callback that ends the search when the gates have converged; recovery gets the remaining steps.

    Attributes:
        reason: Reason why the search ended; None while it continues.
    """

    def __init__(self, convergence: Convergence, *, after: float = 0.67) -> None:
        """Set the criterion.

        Args:
            convergence: Detector of converged gates.
            after: Fraction of the search before which it does not end: at first gates rest because none is closing yet.
        """
        self.reason: str | None = None
        self._convergence = convergence
        self._after = after
        self._last_checked = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once if the loaded checkpoint was saved at the end of the search."""
        trainer.should_stop = trainer.should_stop or self.reason is not None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the gates for convergence at every logged step."""
        assert isinstance(pl_module, FineTuning)
        assert pl_module.objective is not None
        step = trainer.global_step
        is_due = step % trainer.log_every_n_steps == 0 and step != self._last_checked  # type: ignore[attr-defined]
        if not is_due or step < self._after * trainer.max_steps:
            return
        self._last_checked = step
        self.reason = self._convergence.update(pl_module.gates, pl_module.objective.kept(pl_module.gates))
        trainer.should_stop = trainer.should_stop or self.reason is not None

    def state_dict(self) -> dict[str, Any]:
        """Return the detector's state for a checkpoint."""
        return {
            "convergence": self._convergence.state_dict(),
            "looked_at": self._last_checked,  # the key in checkpoints of earlier versions
            "reason": self.reason,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the detector's state from a checkpoint."""
        self._convergence.load_state_dict(state_dict["convergence"])
        self._last_checked = state_dict["looked_at"]
        self.reason = state_dict["reason"]


def log_kept_heads(
    loggers: Sequence[Logger], gates: HeadGates, objective: Objective, *, kept: torch.Tensor | None, step: int
) -> None:
    """Log the state of the gates after the search, with kept heads counted as open.

    Args:
        loggers: The loggers of the run.
        gates: The gates at the end of the search.
        objective: The objective of the search.
        kept: Boolean mask of the gates to keep, ``[num_gates]``; None to keep the open ones.
        step: Number of steps of the search.
    """
    with nullcontext() if kept is None else gates.fixed_at(kept.float()):
        metrics = {name: float(value) for name, value in gate_metrics(gates, objective).items()}
    for logger in loggers:
        logger.log_metrics(metrics, step=step)
        logger.save()


def record_spent(history: History, gates: HeadGates, objective: Objective, *, kept: torch.Tensor | None) -> None:
    """Add the quantity of the budget, and the cost of the kept gates, to the history of a search at its end.

    Args:
        history: The history.
        gates: The gates at the end of the search.
        objective: The objective of the search.
        kept: Boolean mask of the gates to keep, ``[num_gates]``; None to keep the open ones.
    """
    history.quantity = quantity_of(gates)
    if history.quantity == "cost":
        history.spent = spent_by_unit(gates, objective, gates.values() > 0 if kept is None else kept)


def _log_first_step(trainer: pl.Trainer, module: FineTuning) -> None:
    """Log the losses and the state of the gates after the first batch, at which curves begin."""
    losses = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
    gates = {} if module.objective is None else gate_metrics(module.gates, module.objective)
    values = {name: float(value) for name, value in (losses | gates).items()}
    for logger in trainer.loggers if trainer.is_global_zero else ():
        logger.log_metrics(values, step=0)


def _kept_amount(model: nn.Module, history: History) -> float:
    """Return the quantity of a history for a model without gates."""
    if history.quantity == "cost":
        return sum(history.spent.values())
    return count_heads(model) if history.quantity == "heads" else count_neurons(model)


def _log_figure(trainer: pl.Trainer, gates: HeadGates, objective: Objective, *, step: int) -> None:
    loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger | TensorBoardLogger)]
    if not loggers:
        return
    kinds = dict(zip(gates.block_names, gates.block_kinds, strict=True))
    heads = {name: values.tolist() for name, values in gates.by_block().items() if kinds[name] != "feed_forward"}
    counts = torch.tensor(gates.neurons_per_gate).split(gates.block_sizes)
    neurons = [
        (name, num_open, int(numbers.sum()))
        for (name, num_open), numbers in zip(gates.open_by_block().items(), counts, strict=True)
        if kinds[name] == "feed_forward"
    ]
    is_cost = quantity_of(gates) == "cost"
    figure = gates_figure(
        heads,
        title=f"Gates after {step} steps: {gates.num_open()} heads open",
        neurons=neurons,
        spent=spent_by_unit(gates, objective, gates.values() > 0) if is_cost else None,
        target=objective.target(gates) if is_cost else math.nan,
    )
    name = "gates/units" if neurons else "gates/heads"
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [figure], step=step)
        else:
            log_figure(logger, name, figure, step=step)
