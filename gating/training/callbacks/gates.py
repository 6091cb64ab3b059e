"""What is recorded and shown while gates are trained."""

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
from gating.report.history import History, Look
from gating.training.module import FineTuning

__all__ = ["GateMonitor", "SearchEnd", "log_kept_heads"]


class GateMonitor(Callback):
    """Logs the state of the gates at every step that is logged, and a map of heads at every validation."""

    def __init__(self, history: History) -> None:
        """Args: ``history`` is what the looks are added to."""
        self.history = history

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the counts of gates."""
        assert isinstance(pl_module, FineTuning)
        if pl_module.objective is not None and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log_dict(_gate_metrics(pl_module.gates, pl_module.objective))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember this look, and send the map of heads to W&B."""
        assert isinstance(pl_module, FineTuning)
        if trainer.sanity_checking:
            return
        metric = float(trainer.callback_metrics[f"val/{pl_module.score.name}"])
        if pl_module.objective is None:
            kept = sum(block.num_heads for block in find_attention_blocks(pl_module.model))
            self.history.looks.append(Look(pl_module.step_in_run, metric, kept, kept, kept))
            return
        gates, objective = pl_module.gates, pl_module.objective
        look = Look(
            pl_module.step_in_run, metric, float(gates.expected_open()), gates.num_open(), objective.target(gates)
        )
        values = {name: z.tolist() for name, z in gates.by_block().items()}
        self.history.looks.append(look)
        self.history.gate_values.append(values)
        if trainer.is_global_zero:
            _log_head_map(trainer, values, look)

    def state_dict(self) -> dict[str, Any]:
        """Put the history into checkpoints."""
        return self.history.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the history from a checkpoint."""
        self.history.load_state_dict(state_dict)


class SearchEnd(Callback):
    """Ends the search before its last step when the gates have come to rest; the steps left over go to recovery.

    Attributes:
        reason: Why the search ended; None as long as it goes on.
    """

    def __init__(self, convergence: Convergence, *, after: float = 0.67) -> None:
        """Say when to look.

        Args:
            convergence: What notices that the gates have come to rest.
            after: Share of the search before which it does not end: gates that nothing closes yet are at rest, too.
        """
        self.reason: str | None = None
        self._convergence = convergence
        self._after = after
        self._looked_at = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stay at the end that a checkpoint was written at."""
        trainer.should_stop = trainer.should_stop or self.reason is not None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the gates at every step that is logged."""
        assert isinstance(pl_module, FineTuning)
        assert pl_module.objective is not None
        step = trainer.global_step
        is_due = step % trainer.log_every_n_steps == 0 and step != self._looked_at  # type: ignore[attr-defined]
        if not is_due or step < self._after * trainer.max_steps:
            return
        self._looked_at = step
        self.reason = self._convergence.update(pl_module.gates, pl_module.objective.kept(pl_module.gates))
        trainer.should_stop = trainer.should_stop or self.reason is not None

    def state_dict(self) -> dict[str, Any]:
        """Put what was seen into checkpoints."""
        return {
            "convergence": self._convergence.state_dict(),
            "looked_at": self._looked_at,
            "reason": self.reason,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what was seen from a checkpoint."""
        self._convergence.load_state_dict(state_dict["convergence"])
        self._looked_at = state_dict["looked_at"]
        self.reason = state_dict["reason"]


def log_kept_heads(
    loggers: Sequence[Logger], gates: HeadGates, objective: Objective, *, kept: torch.Tensor | None, step: int
) -> None:
    """Log the state of the gates once more, with those as open that are kept.

    Args:
        loggers: The loggers of the run.
        gates: The gates at the end of the search.
        objective: The objective of the search.
        kept: Which gates stay, ``[num_gates]``; None for those that are open.
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


def _log_head_map(trainer: pl.Trainer, values: dict[str, list[float]], look: Look) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            figure = head_map_figure(values, title=f"Gates after {look.step} steps: {look.open:.0f} heads open")
            logger.log_image("gates/heads", [figure], step=look.step)
