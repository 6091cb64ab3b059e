"""Construction of the objects that settings describe."""

import inspect
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning_fabric.utilities.exceptions import MisconfigurationException

from gating.errors import InputError, explain, is_input_error
from gating.run.settings.check import check_call, is_optimizer, keywords, locate_target
from gating.training.optimizers import AdamW, AnyOptimizer, OptimizerSettings

__all__ = [
    "build",
    "call_source",
    "make_objective",
    "make_optimizer",
    "drop_unaccepted_settings",
    "partial_of",
    "with_partial_metrics",
]

# Errors that constructors of other packages raise for invalid arguments.
_REFUSALS = (ValueError, TypeError, ImportError, MisconfigurationException)
# What a run asks of the object of a group.
_NEEDED = {
    "adapters": "on",
    "callbacks": "on_exception",
    "convergence": "state_dict",
    "distillation": "loss",
    "latency": "batch_size",
    "model": "load_config",
    "objective": "check",
    "optimizer": "build",
    "scheduler": "build",
    "task": "prepare",
}


def build(name: str, values: Mapping[str, Any], **options: Any) -> Any:
    """Return the object that a group of settings describes; options are those of :func:`hydra.utils.instantiate`.

    Raises:
        InputError: The constructor rejects the values, or its object does not fit.
    """
    built, error = _instantiate(values, **options)
    if error is None:
        needed = None if "_partial_" in options else _NEEDED.get(name.partition(".")[0])
        if needed is not None and not hasattr(built, needed):
            made = "None" if built is None else f"a {type(built).__name__}"
            raise InputError(
                f"{name}._target_={values.get('_target_')} returns {made}, which has no {needed}: name a class for "
                f"{name.partition('.')[0]}."
            )
        return built
    if is_input_error(error) or not isinstance(error, _REFUSALS):
        raise error
    raise InputError(f"{name} cannot be used: {explain(error).rstrip('.')}.") from error


def partial_of(name: str, values: Mapping[str, Any]) -> partial[Any]:
    """Return a group of settings as a function of the remaining arguments; its nested objects are built.

    Raises:
        InputError: As for :func:`build`.
    """
    made: partial[Any] = build(name, values, _partial_=True)
    locate_target(values["_target_"], f"{name}.")
    return made


def call_source(name: str, values: Mapping[str, Any]) -> Any:
    """Return the result of a function that settings name; errors inside a user's function keep their traceback.

    Raises:
        InputError: The function does not take the arguments.
    """
    check_call(locate_target(values["_target_"], f"{name}."), values, name=name)
    result, error = _instantiate(values)
    if error is not None:
        raise error
    return result


def make_objective(values: Mapping[str, Any]) -> Any:
    """Return the objective without its speedup, which gating/run/measured_budget.py replaces by a budget."""
    return build("objective", {name: value for name, value in values.items() if name != "speedup"})


def with_partial_metrics(task: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a task in which classes of metrics are functions of the arguments that the data give.

    Raises:
        InputError: A class does not exist.
    """
    metrics = task.get("metrics")
    if isinstance(metrics, Mapping) and "_target_" in metrics:
        metrics = [metrics]
    if isinstance(metrics, Mapping):
        metrics = {name: _partial_metric(str(name), metric) for name, metric in metrics.items()}
    elif isinstance(metrics, list):
        metrics = [_partial_metric(str(number), metric) for number, metric in enumerate(metrics)]
    return {**task, **({"metrics": metrics} if metrics is not None else {})}


def _partial_metric(name: str, metric: Any) -> Any:
    if not isinstance(metric, Mapping):
        return metric
    locate_target(metric.get("_target_"), f"task.metrics.{name}.")
    return {**metric, "_partial_": True}


def make_optimizer(values: Mapping[str, Any]) -> OptimizerSettings:
    """Return the optimizer's settings; a class of optimizers, such as ``torch.optim.SGD``, trains the weights.

    Raises:
        InputError: The class does not take its settings.
    """
    target = locate_target(values["_target_"], "optimizer.")
    if not is_optimizer(target):
        made: OptimizerSettings = build("optimizer", values)
        return made
    own = {name: value for name, value in values.items() if name in keywords(AnyOptimizer)}
    options = {name: value for name, value in values.items() if name not in own and not name.startswith("_")}
    try:
        return AnyOptimizer(target, options, **own)
    except _REFUSALS as error:
        raise InputError(f"optimizer cannot be used: {explain(error).rstrip('.')}.") from error


def drop_unaccepted_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an optimizer without those that ``optimizer=adamw`` has and its own class does not take.

    A command that replaces the class alone leaves the defaults of the option.
    """
    target = locate_target(values["_target_"], "optimizer.")
    if not is_optimizer(target):
        return dict(values)
    taken = {*inspect.signature(target).parameters, *keywords(AnyOptimizer)}
    defaults = {field.name: field.default for field in fields(AdamW)}

    def is_left_over(name: str, value: Any) -> bool:
        value = tuple(value) if isinstance(value, list) else value
        return name in defaults and name not in taken and value == defaults[name]

    return {name: value for name, value in values.items() if not is_left_over(name, value)}


def _instantiate(values: Mapping[str, Any], **options: Any) -> tuple[Any, BaseException | None]:
    """Return the object, or None and the error of its constructor without Hydra's around it."""
    try:
        return instantiate(values, _convert_="all", **options), None
    except InstantiationException as error:
        # Without a cause, Hydra could not find or call the target.
        return None, error.__cause__ or InputError(explain(error))
