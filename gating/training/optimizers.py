"""Optimizers and learning rate schedules of weights, gates and multipliers."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from gating.discovery.find import Unit
from gating.objectives.parameter_groups import default_gate_lr

__all__ = ["AdamW", "LinearSchedule", "WarmupSchedule"]

_Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Decay = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class AdamW:
    """AdamW with separate learning rates for weights, gates and multipliers.

    Attributes:
        lr: Learning rate of the weights.
        gate_lr: Learning rate of the gates; about a thousand times that of the weights, or no gate closes in a run.
            None for 0.1 with gates on heads alone, and 0.2 with gates on neurons.
        multiplier_lr: Learning rate of the objective's multipliers, which ascend.
        weight_decay: Weight decay of the weights; gates and multipliers have none.
        betas: Decay rates of the running averages.
    """

    lr: _Rate = 1e-4
    gate_lr: _Rate | None = None
    multiplier_lr: _Rate = 0.1
    weight_decay: _Rate = 0.01
    betas: tuple[_Decay, _Decay] = (0.9, 0.999)

    def build(
        self,
        weights: Iterable[nn.Parameter],
        gates: Iterable[nn.Parameter],
        multipliers: Iterable[nn.Parameter],
        *,
        units: Collection[Unit] = (),
        fused: bool = True,
    ) -> torch.optim.Optimizer:
        """Return the optimizer, with a parameter group for each non-empty argument.

        Args:
            weights: Parameters of the model.
            gates: Parameters of the gates.
            multipliers: Parameters of the objective, which ascend.
            units: Kinds of units that have gates.
            fused: Whether to use the fused implementation, several times faster on CPUs.
        """
        gate_lr = default_gate_lr(units) if self.gate_lr is None else self.gate_lr
        # Biases and norms decay, too, unlike in transformers' Trainer: results of earlier runs stay reproducible.
        groups: list[dict[str, Any]] = [
            {"name": "weights", "params": list(weights), "lr": self.lr, "weight_decay": self.weight_decay},
            {"name": "gates", "params": list(gates), "lr": gate_lr, "weight_decay": 0.0},
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
class WarmupSchedule:
    """Learning rate of the weights: linear warm-up, then one of transformers' schedules over the whole run.

    Search and recovery share one schedule, so that a run with gates and a dense run have the same learning rates.
    Gates and multipliers keep a constant rate.

    Attributes:
        warmup: Fraction of the run's steps in which the rate rises.
        shape: Name of a schedule in :func:`transformers.get_scheduler`.
    """

    warmup: Annotated[float, Field(ge=0, le=1)] = 0.1
    shape: Literal["linear", "cosine", "constant_with_warmup", "inverse_sqrt"] = "linear"

    def build(self, optimizer: torch.optim.Optimizer, *, first_step: int, total_steps: int) -> LambdaLR:
        """Return the scheduler.

        Args:
            optimizer: An optimizer from :meth:`AdamW.build`.
            first_step: Optimizer steps of the run before this phase.
            total_steps: Optimizer steps of the whole run.

        Example:
            >>> optimizer = AdamW(lr=1.0).build([nn.Parameter(torch.zeros(2))], [], [])
            >>> WarmupSchedule(warmup=0.5).build(optimizer, first_step=0, total_steps=4).get_last_lr()
            [0.5]
        """
        warmup_steps = max(1, round(self.warmup * total_steps))
        # transformers returns its shapes only as schedulers. The one below replaces this one: it starts from the
        # optimizer's `initial_lr`, which no scheduler changes.
        shape = get_scheduler(
            self.shape,
            optimizer,
            num_warmup_steps=warmup_steps,
            num_training_steps=max(total_steps, warmup_steps + 1),  # the last step of a warm-up has the full rate
        ).lr_lambdas[0]

        def factor(step: int) -> float:
            done = first_step + step
            # transformers' warm-up begins at 0, where the first step would train nothing; this one is a step ahead.
            return float(shape(max(done, min(done + 1, warmup_steps))))

        def constant(_: int) -> float:
            return 1.0

        return LambdaLR(optimizer, [factor if g["name"] == "weights" else constant for g in optimizer.param_groups])


@dataclass(frozen=True)
class LinearSchedule(WarmupSchedule):
    """``WarmupSchedule(shape="linear")`` under its former name, which settings of earlier runs contain."""

    shape: Literal["linear"] = "linear"
