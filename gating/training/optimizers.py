"""Three kinds of parameters, one optimizer: weights, gates, multipliers."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["AdamW", "LinearSchedule"]

_Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Decay = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class AdamW:
    """AdamW with a learning rate of their own for the gates and for the multipliers.

    Attributes:
        lr: Learning rate of the weights.
        gate_lr: Learning rate of the gates; some thousand times that of the weights, or no gate closes in a run.
        multiplier_lr: Learning rate of the objective's multipliers, which ascend.
        weight_decay: Of the weights; the others have none.
        betas: Decay rates of the averages.
    """

    lr: _Rate = 1e-4
    gate_lr: _Rate = 0.1
    multiplier_lr: _Rate = 0.1
    weight_decay: _Rate = 0.01
    betas: tuple[_Decay, _Decay] = (0.9, 0.999)

    def build(
        self,
        weights: Iterable[nn.Parameter],
        gates: Iterable[nn.Parameter],
        multipliers: Iterable[nn.Parameter],
        *,
        fused: bool = True,
    ) -> torch.optim.Optimizer:
        """Return the optimizer, with those of the three groups that have parameters.

        Args:
            weights: Parameters of the model.
            gates: Parameters of the gates.
            multipliers: Parameters of the objective, which ascend.
            fused: Whether one kernel updates a parameter, on CPUs several times as fast as without.
        """
        groups: list[dict[str, Any]] = [
            {"name": "weights", "params": list(weights), "lr": self.lr, "weight_decay": self.weight_decay},
            {"name": "gates", "params": list(gates), "lr": self.gate_lr, "weight_decay": 0.0},
            {
                "name": "multipliers",
                "params": list(multipliers),
                "lr": self.multiplier_lr,
                "weight_decay": 0.0,
                "maximize": True,
            },
        ]
        return torch.optim.AdamW([group for group in groups if group["params"]], betas=self.betas, fused=fused)


@dataclass(frozen=True)
class LinearSchedule:
    """Learning rate of the weights: linear warm-up, then linear decay to zero over the whole run.

    Search and recovery follow one line, so that a run with gates and a dense one have the same learning rates.
    Gates and multipliers keep a constant rate: the schedule of the objective says when they move.

    Attributes:
        warmup: Share of the run's steps in which the rate rises.
    """

    warmup: Annotated[float, Field(ge=0, le=1)] = 0.1

    def build(self, optimizer: torch.optim.Optimizer, *, first_step: int, total_steps: int) -> LambdaLR:
        """Return the scheduler.

        Args:
            optimizer: One of :meth:`AdamW.build`.
            first_step: Steps of the run that went before.
            total_steps: Steps of the whole run.
        """
        warmup_steps = max(1, round(self.warmup * total_steps))

        def factor(step: int) -> float:
            done = first_step + step
            return max(0.0, min((done + 1) / warmup_steps, (total_steps - done) / max(1, total_steps - warmup_steps)))

        def constant(_: int) -> float:
            return 1.0

        return LambdaLR(optimizer, [factor if g["name"] == "weights" else constant for g in optimizer.param_groups])
