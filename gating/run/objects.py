"""Objects that the settings describe, built before anything is loaded; from then on, a run asks them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from transformers import PreTrainedModel

from gating.errors import InputError
from gating.gates import HeadGates, create_gates, inject_gates
from gating.models.adapters import Adapters
from gating.models.sources import ModelSource, teacher_source
from gating.objectives import Objective
from gating.objectives.convergence import Convergence
from gating.objectives.distillation import Distillation
from gating.pruning.latency.settings import LatencySettings
from gating.run.folder.contents import Phase
from gating.run.settings.build import build, make_objective, make_optimizer, partial_of, with_partial_metrics
from gating.run.settings.settings import Settings, is_dense
from gating.tasks.base import Task
from gating.training.optimizers import OptimizerSettings

__all__ = ["BudgetSettings", "PhaseObjects", "RunObjects", "build_objects", "build_phases"]


@dataclass(frozen=True)
class PhaseObjects:
    """Objects of one training phase.

    Attributes:
        optimizer: Factory of the optimizer.
        scheduler: Factory of the learning rate schedule.
        callbacks: Callbacks of the settings.
        make_trainer: The trainer, as a function of the arguments that a run gives it.
        trainer: Settings of the trainer.
    """

    optimizer: OptimizerSettings
    scheduler: Any
    callbacks: tuple[Callback, ...]
    make_trainer: Callable[..., pl.Trainer]
    trainer: Mapping[str, Any]


@dataclass(frozen=True)
class BudgetSettings:
    """The budget of an objective as far as a run acts on it; an objective need not have these settings.

    Attributes:
        speedup: Speed-up to reach on this device; None without one.
        keep: Share of the cost to keep.
        cost: Cost for which heads and neurons compete; None for an objective without one.
        min_per_layer: Least number of heads that every layer keeps; None for an objective that takes none.
        uniform: Whether all layers keep equally many.
    """

    speedup: float | None = None
    keep: Any = None
    cost: Any = None
    min_per_layer: int | None = None
    uniform: bool = False

    @classmethod
    def of(cls, objective: Mapping[str, Any]) -> "BudgetSettings":
        """Return the budget in the settings of an objective."""
        return cls(**{field.name: objective[field.name] for field in fields(cls) if field.name in objective})

    @property
    def is_measured(self) -> bool:
        """Whether a part of it is measured on the device, before the run begins."""
        return bool(self.speedup) or self.cost == "latency"


@dataclass(frozen=True)
class RunObjects:
    """Objects that a run asks from its first check to its export.

    Attributes:
        task: The task.
        objective: Decides which heads are kept; None in a dense run.
        budget: The budget of the objective.
        source: Source of the model.
        adapters: Low-rank adapters, or none.
        distillation: Loss of distillation; None without it.
        teacher: Source of the dense model to distill from; None where the run trains it.
        store_logits: Whether the teacher's logits are stored; None to decide by the work.
        convergence: Criterion that ends the search early; None without it.
        latency: Settings of timings.
        make_gates: ``inject_gates``, as a function of the model.
        make_loggers: The loggers, as a function of the run's folder and configuration.
    """

    task: Task
    objective: Objective | None
    budget: BudgetSettings
    source: ModelSource
    adapters: Adapters
    distillation: Distillation | None
    teacher: ModelSource | None
    store_logits: bool | None
    convergence: Convergence | None
    latency: LatencySettings
    make_gates: "partial[HeadGates]"
    make_loggers: Callable[..., list[Logger]]

    @property
    def discovers(self) -> bool:
        """Whether attention blocks are discovered, which takes the weights of the model."""
        return bool(self.make_gates.keywords.get("discover"))

    def with_objective(self, settings: Mapping[str, Any]) -> "RunObjects":
        """Return the same objects with an objective whose budget was measured."""
        return replace(self, objective=make_objective(settings), budget=BudgetSettings.of(settings))

    def gates_without_model(self, model: PreTrainedModel, **keywords: Any) -> HeadGates:
        """Return the gates that the model, which may be on the meta device, would have, and leave none in it.

        Raises:
            InputError: The model cannot have these gates, or a function of the user returns none.
        """
        if self.make_gates.func is inject_gates:
            return create_gates(model, **keywords, **self.make_gates.keywords)
        gates = self.make_gates(model, **keywords)
        if not isinstance(gates, HeadGates):
            raise InputError(f"gates._target_ must return HeadGates, got a {type(gates).__name__}.")
        gates.remove()
        return gates


def build_objects(settings: Settings) -> RunObjects:
    """Return the objects of a run.

    Raises:
        InputError: A constructor rejects its settings.
    """
    values = settings.values
    objective = None if is_dense(values) else make_objective(values["objective"])
    # distillation=none has no class, whatever an experiment says of a teacher.
    distillation = dict(values["distillation"]) if values["distillation"].get("_target_") else {}
    teacher, store = (distillation.pop(name, None) for name in ("teacher", "store"))
    make_loggers = partial_of("logger", values["logger"])
    return RunObjects(
        task=build("task", with_partial_metrics(values["task"])),
        objective=objective,
        budget=BudgetSettings.of(values["objective"]),
        source=build("model", values["model"]),
        adapters=build("adapters", values["adapters"]),
        distillation=build("distillation", distillation) if distillation else None,
        teacher=teacher_source(teacher=teacher),
        store_logits=store,
        convergence=build("convergence", values["convergence"]) if values["convergence"] else None,
        latency=build("latency", values["latency"]),
        make_gates=partial_of("gates", values["gates"]),
        make_loggers=make_loggers,
    )


def build_phases(settings: Settings) -> dict[Phase, PhaseObjects]:
    """Return the objects of each training phase.

    Raises:
        InputError: A constructor rejects its settings.
    """
    return {phase: _build_phase(settings.of_phase(phase)) for phase in Phase if phase != Phase.REMOVED}


def _build_phase(values: Mapping[str, Any]) -> PhaseObjects:
    chosen = {name: callback for name, callback in values["callbacks"].items() if callback is not None}
    return PhaseObjects(
        optimizer=make_optimizer(values["optimizer"]),
        scheduler=build("scheduler", values["scheduler"]),
        callbacks=tuple(build(f"callbacks.{name}", callback) for name, callback in chosen.items()),
        make_trainer=partial_of("trainer", values["trainer"]),
        trainer=values["trainer"],
    )
