"""Validation of a run's settings, before anything is loaded."""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from gating import tasks
from gating.data.datamodule import ExampleDataModule
from gating.errors import InputError, explain
from gating.models.sources import teacher_source
from gating.pruning.latency.speedup import check_speedup
from gating.report.metadata import training_notes
from gating.run.folder.inputs import check_inputs
from gating.run.folder.optimized import check_optimized
from gating.run.settings.build import drop_unaccepted_settings
from gating.run.settings.check import (
    check_complete,
    check_settings,
    is_optimizer,
    keywords,
    locate_target,
    takes_any,
)
from gating.run.settings.settings import Settings, as_plain, is_dense, resolve
from gating.training.optimizers import AnyOptimizer
from gating.training.stored_logits import can_store_logits

__all__ = ["read_settings", "resolving"]


def read_settings(composed: Mapping[str, Any], *, groups: Collection[str]) -> Settings:
    """Return the settings of a configuration, each validated against the signature that takes it.

    Raises:
        InputError: A setting is missing, unknown, of the wrong type, or contradicts another one.
    """
    with resolving():
        plain = as_plain(composed)
        check_complete(plain, groups=groups)
        if is_dense(plain):
            # Budgets of an experiment are not meant for its dense run.
            plain["objective"] = {"_target_": plain["objective"]["_target_"]}
        plain["optimizer"] = drop_unaccepted_settings(plain["optimizer"])
        values = resolve(plain)
    values["data"] = _without_defaults(values["data"])
    # A user finds batches, tokens and columns among the settings of the data.
    prepare = locate_target(f"{values['task']['_target_']}.prepare", "task.")
    places: dict[str, list[Callable[..., Any]]] = {
        "data": [ExampleDataModule, check_inputs, training_notes, prepare],
        "objective": [check_speedup],
        "distillation": [teacher_source, can_store_logits],
        "optimizer": [AnyOptimizer]
        if is_optimizer(locate_target(values["optimizer"]["_target_"], "optimizer."))
        else [],
    }
    check_settings(values, groups={"convergence", *groups}, also=places)
    check_optimized(values["optimized_metric"])
    check_speedup(**{name: values["objective"].get(name) for name in ("speedup", "num_heads", "num_neurons", "keep")})
    _check_movable(values["objective"])
    return Settings.of(plain, data=values["data"])


@contextmanager
def resolving() -> Iterator[None]:
    """Raise OmegaConf's errors about interpolations and missing settings as :class:`InputError`."""
    try:
        yield
    except OmegaConfBaseException as error:
        raise InputError(explain(error)) from error


def _check_movable(objective: Mapping[str, Any]) -> None:
    """Raise ``InputError`` if an objective with a speedup has no budget that could be replaced by a measured one."""
    if objective.get("speedup") is None:
        return
    target = locate_target(objective["_target_"], "objective.")
    if not takes_any(target) and not {"keep", "cost"} <= inspect.signature(target).parameters.keys():
        raise InputError(
            f"objective.speedup={objective['speedup']} needs an objective with a budget, such as objective=budget: "
            f"{objective['_target_']} does not take keep and cost."
        )
    if objective.get("cost", "latency") not in ("macs", "latency"):
        raise InputError(
            f"A speedup is a budget of latency, so objective.cost={objective['cost']} cannot be used with it: leave it "
            "out."
        )


def _without_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of data without those that are left to the task, or that only other tasks take."""
    own = inspect.signature(locate_target(settings["_target_"], "data.")).parameters
    for name, parameter in own.items():
        is_named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if is_named and parameter.default is parameter.empty and name not in settings:
            raise InputError(f"data.{name} is needed, which {settings['_target_']} takes: add data.{name}=...")
    elsewhere = {name for task in tasks.__all__ for name in keywords(getattr(tasks, task).prepare)}
    left = elsewhere | keywords(ExampleDataModule)
    if not settings["_target_"].startswith("gating."):
        left |= settings.keys()  # A user's own source may replace the source of any option.
    return {name: value for name, value in settings.items() if value is not None or name in own or name not in left}
