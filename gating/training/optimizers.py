"""Optimizers and learning rate schedules of weights, gates and multipliers."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from gating.errors import InputError
from gating.gates import HeadGates
from gating.objectives import Objective
from gating.objectives.parameter_groups import parameter_groups

_Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Decay = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class OptimizerSettings:
    """Settings from which each phase builds its optimizer: learning rates and weight decay of the parameter groups.

    Attributes:
        lr: Learning rate of the weights.
        gate_lr: Learning rate of the gates; about a thousand times that of the weights, or no gate closes in a run.
            None for 0.1 with gates on heads alone, and 0.2 with gates on neurons.
        multiplier_lr: Learning rate of the objective's multipliers, which ascend.
        weight_decay: Weight decay of the weights; gates and multipliers have none.
        decay_biases_and_norms: Whether biases and norms have weight decay, too; unlike in transformers' Trainer.
        freeze: Whether a run trains the gates alone, or gates and adapters: always, or in its ``search``.
    """

    _: KW_ONLY
    lr: _Rate = 1e-4
    gate_lr: _Rate | None = None
    multiplier_lr: _Rate = 0.1
    weight_decay: _Rate = 0.01
    decay_biases_and_norms: bool = False
    freeze: bool | Literal["search"] = False

    def build(
        self, model: nn.Module, *, gates: HeadGates | None = None, objective: Objective | None = None
    ) -> torch.optim.Optimizer:
        """Return an optimizer whose groups have a ``name``; those of the weights begin with ``weights``."""
        groups = parameter_groups(
            model,
            lr=self.lr,
            weight_decay=self.weight_decay,
            gates=gates,
            objective=objective,
            gate_lr=self.gate_lr,
            multiplier_lr=self.multiplier_lr,
        )
        trained = {id(parameter) for group in groups if _is_of_weights(group) for parameter in group["params"]}
        if self.decay_biases_and_norms and trained:
            # In the order of the model: the norm of all gradients depends on it to the bit.
            weights = [parameter for parameter in model.parameters() if id(parameter) in trained]
            one = {"name": "weights", "params": weights, "lr": self.lr, "weight_decay": self.weight_decay}
            groups = [one, *(group for group in groups if not _is_of_weights(group))]
        return self._make(groups)

    def _make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer of some groups."""
        raise NotImplementedError


def _adamw(groups: list[dict[str, Any]], **options: Any) -> torch.optim.AdamW:
    """Return the fused implementation, several times faster on CPUs."""
    optimizer = torch.optim.AdamW(groups, fused=True, **options)
    # Or Lightning refuses to clip gradients in mixed precision; now a scaler divides them before, as for any optimizer.
    optimizer._step_supports_amp_scaling = False
    return optimizer


@dataclass(frozen=True)
class AdamW(OptimizerSettings):
    """AdamW with separate learning rates for weights, gates and multipliers.

    Attributes:
        betas: Decay rates of the running averages.
    """

    betas: tuple[_Decay, _Decay] = (0.9, 0.999)

    def _make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return _adamw(groups, betas=self.betas)


@dataclass(frozen=True)
class AnyOptimizer(OptimizerSettings):
    """Any class of optimizers for the weights, beside AdamW for gates and multipliers.

    Attributes:
        weights: Class of the optimizer of the weights, such as ``torch.optim.SGD``, with its keyword arguments besides
            the learning rate and the weight decay (:func:`functools.partial`).

    Raises:
        ValueError: The class does not take its arguments, or they have a rate or a decay.
        TypeError: An argument is unknown.
    """

    weights: Callable[..., torch.optim.Optimizer]

    def __post_init__(self) -> None:
        for name in {"lr", "weight_decay"} & getattr(self.weights, "keywords", {}).keys():
            raise InputError(f"optimizer.weights.{name} has no effect: give optimizer.{name}.")
        # Unknown or invalid arguments are refused before data and model are loaded.
        self.weights([{"params": [nn.Parameter(torch.zeros(2, 2))]} for _ in range(2)], lr=self.lr)

    def _make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        others = [group for group in groups if not _is_of_weights(group)]
        if len(others) == len(groups):
            return _adamw(others)  # The weights are frozen.
        weights = self.weights([group for group in groups if _is_of_weights(group)], lr=self.lr)
        return CombinedOptimizer(weights, _adamw(others)) if others else weights


def _is_of_weights(group: dict[str, Any]) -> bool:
    return str(group["name"]).startswith("weights")


class CombinedOptimizer(torch.optim.Optimizer):
    """Optimizers that share one list of groups and one state, so that a step of them all counts once in Lightning."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        """Args: ``optimizers`` are used by this one alone from now on."""
        self._optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        for optimizer in optimizers:
            self.state.update(optimizer.state)
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of each optimizer; ``closure`` computes the gradients and returns the loss, once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self._optimizers:
            optimizer.step()
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore groups and state, and share them again."""
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Let each optimizer use its part of the groups, and the common state."""
        start = 0
        for optimizer in self._optimizers:
            stop = start + len(optimizer.param_groups)
            optimizer.state, optimizer.param_groups = self.state, self.param_groups[start:stop]
            start = stop


@dataclass(frozen=True)
class WarmupSchedule:
    """Learning rate of the weights: linear warm-up, then one of transformers' schedules over the whole run.

    The search has the rates of a dense run. A planned recovery begins the schedule again, for its own steps: a model
    that has lost most of its units learns more with a large rate than with the end of a schedule (Renda et al. 2020,
    arXiv 2003.02389). Gates and multipliers keep a constant rate.

    Attributes:
        warmup: Fraction of the steps in which the rate rises.
        shape: Name of a schedule in :func:`transformers.get_scheduler`.
        arguments: Its own arguments, ``scheduler_specific_kwargs`` in transformers, such as ``num_cycles``.
        restart: Whether the recovery begins the schedule again; otherwise, it has the end of that of the search. A run
            without a planned recovery has one schedule in any case.

    Raises:
        ValueError: There is no such schedule, or it depends on more than the step.
        TypeError: An argument is unknown, missing or of a wrong type.
    """

    warmup: Annotated[float, Field(ge=0, le=1)] = 0.1
    shape: str = "linear"
    arguments: dict[str, Any] = field(default_factory=dict)
    restart: bool = True

    def __post_init__(self) -> None:
        # The arguments are tried before data and model are loaded.
        self._factor(lr=1.0, first_step=0, total_steps=10)

    def build(self, optimizer: torch.optim.Optimizer, *, first_step: int, total_steps: int) -> LambdaLR:
        """Return the scheduler of a phase that begins after ``first_step`` of ``total_steps`` steps of the run."""
        if self.restart:
            first_step, total_steps = 0, total_steps - first_step
        rates = [group["lr"] for group in optimizer.param_groups if _is_of_weights(group)]
        factor = self._factor(lr=rates[0] if rates else 1.0, first_step=first_step, total_steps=total_steps)
        return LambdaLR(optimizer, [factor if _is_of_weights(g) else lambda _: 1.0 for g in optimizer.param_groups])

    def _factor(self, *, lr: float, first_step: int, total_steps: int) -> Callable[[int], float]:
        """Return the function from the steps of a phase to the factor of the learning rate."""
        warmup_steps = max(1, round(self.warmup * total_steps))
        # transformers returns its schedules only with an optimizer; some have an absolute rate as their end.
        schedule = get_scheduler(
            self.shape,
            torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr),
            num_warmup_steps=warmup_steps,
            num_training_steps=max(total_steps, warmup_steps + 1),  # the last step of a warm-up has the full rate
            scheduler_specific_kwargs=dict(self.arguments),
        )
        if not isinstance(schedule, LambdaLR):
            raise InputError(f"shape={self.shape} waits for the loss to fall, but it rises while heads close.")
        shape = schedule.lr_lambdas[0]

        def factor(step: int) -> float:
            done = first_step + step
            # transformers' warm-up begins at 0, where the first step would train nothing; this one is a step ahead.
            return float(shape(max(done, min(done + 1, warmup_steps))))

        return factor
