"""Metrics of gates during training, and the early end of a converged search."""

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger, WandbLogger

from gating.discovery.find import find_attention_blocks
from gating.gates import HeadGates
from gating.objectives import Objective
from gating.objectives.convergence import Convergence
from gating.report.figures import head_map_figure
from gating.report.history import History, Observation
from gating.training.module import FineTuning

__all__ = ["GateMonitor", "SearchEnd", "log_kept_heads"]


class GateMonitor(Callback):
    """Callback that logs the gates' state at every logged step, and a map of heads at every validation."""

    def __init__(self, history: History) -> None:
        """Args: ``history`` collects the state at each validation."""
        self.history = history

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the numbers of open gates."""
        assert isinstance(pl_module, FineTuning)
        if pl_module.objective is not None and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log_dict(_gate_metrics(pl_module.gates, pl_module.objective))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the state to the history, and log the map of heads to W&B."""
        assert isinstance(pl_module, FineTuning)
        if trainer.sanity_checking:
            return
        metric = float(trainer.callback_metrics[f"val/{pl_module.score.name}"])
        if pl_module.objective is None:
            kept = sum(block.num_heads for block in find_attention_blocks(pl_module.model))
            self.history.observations.append(Observation(pl_module.step_in_run, metric, kept, kept, kept))
            return
        gates, objective = pl_module.gates, pl_module.objective
        observation = Observation(
            pl_module.step_in_run, metric, float(gates.expected_open()), gates.num_open(), objective.target(gates)
        )
        values = {name: z.tolist() for name, z in gates.by_block().items()}
        self.history.observations.append(observation)
        self.history.gate_values.append(values)
        if trainer.is_global_zero:
            _log_head_map(trainer, values, observation)

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
        step: Number of the last step.
    """
    with nullcontext() if kept is None else gates.fixed_at(kept.float()):
        metrics = {name: float(value) for name, value in _gate_metrics(gates, objective).items()}
    for logger in loggers:
        logger.log_metrics(metrics, step=step)
        logger.save()


@torch.no_grad()
def _gate_metrics(gates: HeadGates, objective: Objective) -> dict[str, float | torch.Tensor]:
    values = gates.values()
    open_heads = gates.open_by_block()
    metrics: dict[str, float | torch.Tensor] = {
        "gates/expected_open": gates.expected_open(),
        "gates/open": float(sum(open_heads.values())),
        "gates/target": objective.target(gates),
        "gates/undecided": ((values > 0.05) & (values < 0.95)).float().mean(),
    }
    for index, num_open in enumerate(open_heads.values()):
        metrics[f"gates/layer_{index:02d}/open"] = float(num_open)
    kinds = Counter[str]()
    for kind, num_open in zip(gates.block_kinds, open_heads.values(), strict=True):
        kinds[kind] += num_open
    if len(kinds) > 1:
        metrics |= {f"gates/{kind}/open": float(num_open) for kind, num_open in kinds.items()}
    return metrics


def _log_head_map(trainer: pl.Trainer, values: dict[str, list[float]], observation: Observation) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            figure = head_map_figure(
                values, title=f"Gates after {observation.step} steps: {observation.open:.0f} heads open"
            )
            logger.log_image("gates/heads", [figure], step=observation.step)
