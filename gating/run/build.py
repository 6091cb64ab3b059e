"""The objects of a run, built from its settings: each checks its own, and an error names the setting and its value."""

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError
from pydantic_core import SchemaError
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from transformers import PreTrainedModel

from gating.data.datamodule import ExampleDataModule
from gating.errors import InputError, explain, is_input_error
from gating.gates import HeadGates, create_gates, inject_gates
from gating.models.adapters import Adapters, NoAdapters
from gating.models.sources import ModelSource, Pretrained
from gating.objectives import Objective
from gating.objectives.search import Convergence
from gating.run.folder import Phase
from gating.run.settings import OWN, Settings, is_dense
from gating.run.timing import LatencySettings
from gating.tasks.base import HasLoss, Task

if TYPE_CHECKING:
    from gating.teachers.distillation import Distillation

# Errors that constructors of other packages raise for invalid arguments.
_REFUSALS = (ValueError, TypeError, ImportError, MisconfigurationException)
# Neurons of a group where units are ranked: the smaller, the better, and without noise they may be small.
_RANKED_GROUP = 8
_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}


@dataclass(frozen=True)
class DataSettings:
    """Settings of the data: of the source, of the task that encodes its rows, and of the batches."""

    source: dict[str, Any]
    preparation: dict[str, Any]
    batching: dict[str, Any]
    about: str | None
    allow_changed: bool


@dataclass(frozen=True)
class RunObjects:
    """Objects that a run asks from its first check to its export; the objective is None in a dense run.

    ``budget`` has the ``speedup``, ``keep``, ``cost`` and ``uniform`` of the objective, None for those it lacks. The
    teacher is None where it is the dense state of the run. ``make_loggers`` takes the run's folder and configuration.
    """

    task: Task
    objective: Objective | None
    budget: dict[str, Any]
    source: ModelSource
    adapters: Adapters
    distillation: "Distillation | None"
    teacher: ModelSource | None
    convergence: Convergence | None
    latency: LatencySettings
    data: DataSettings
    make_gates: "partial[HeadGates]"
    make_loggers: Callable[..., list[Logger]]

    def with_budget(self, objective: Mapping[str, Any]) -> "RunObjects":
        """Return the same objects with an objective whose budget was measured, by its settings."""
        measured = build_objective({**objective, "speedup": None})
        return replace(self, objective=measured, budget=_budget_of(objective))

    def gates_without_model(self, model: PreTrainedModel, **keywords: Any) -> HeadGates:
        """Return the gates that the model, which may be on the meta device, would have, and leave none in it."""
        if self.make_gates.func is inject_gates:
            return create_gates(model, **keywords, **self.make_gates.keywords)
        gates = self.make_gates(model, **keywords)
        if not isinstance(gates, HeadGates):
            raise InputError(f"gates._target_ must return HeadGates, got a {type(gates).__name__}.")
        gates.remove()
        return gates


def build_objects(settings: Settings) -> RunObjects:
    """Return the objects of a run; ``InputError`` names a setting that cannot be used."""
    task, source = build("task", _with_partial_metrics(settings.task)), build("model", settings.model)
    distillation = _distillation_of(settings, task)
    teacher = distillation.pop("teacher", None)
    make_loggers = build("logger", settings.logger, partial=True)
    # The budget of an experiment is not meant for its dense run.
    objective = {} if is_dense(settings.model_dump()) else settings.objective
    return RunObjects(
        task=task,
        objective=build_objective(objective) if objective else None,
        budget=_budget_of(objective),
        source=source,
        adapters=build("adapters", settings.adapters),
        distillation=build("distillation", distillation) if distillation else None,
        teacher=teacher_in(str(teacher), source) if teacher else None,
        convergence=build("convergence", settings.convergence) if settings.convergence else None,
        latency=build("latency", settings.latency),
        data=_split_data(settings.data, task),
        make_gates=build("gates", _gates_of(settings), partial=True),
        make_loggers=make_loggers,
    )


def _gates_of(settings: Settings) -> dict[str, Any]:
    """Return the settings of the gates, with smaller groups of neurons where units are ranked."""
    found = dict(settings.gates)
    if "group_size" in found and found["group_size"] is None:
        sizes = {"group_size": _RANKED_GROUP} if settings.plan.ranks else {}
        found = {**{name: value for name, value in found.items() if name != "group_size"}, **sizes}
    return found


def _distillation_of(settings: Settings, task: Task) -> dict[str, Any]:
    """Return the settings of the distillation; none where the run has no dense state, and no other teacher is named."""
    # distillation=none has no class, whatever an experiment says of a teacher.
    found = dict(settings.distillation) if settings.distillation.get("_target_") else {}
    is_named = found.get("teacher") not in (None, OWN)
    if is_named or not found:
        return found
    if is_dense(settings.model_dump()) or (settings.may_learn_from_itself and isinstance(task, HasLoss)):
        return {}
    has_own = bool(settings.plan.fine_tuning) or settings.plan.ranks
    is_frozen = settings.learns_from_itself and settings.freezes(Phase.SEARCH)
    return {**found, "teacher": None} if has_own or is_frozen else {}


def build_callbacks(settings: Settings) -> list[Callback]:
    """Return the chosen callbacks, new ones at each call; the errors are those of :func:`build_objects`."""
    callbacks = {name: callback for name, callback in settings.callbacks.items() if callback is not None}
    return [build(f"callbacks.{name}", callback) for name, callback in callbacks.items()]


def build(name: str, values: Mapping[str, Any], *, partial: bool = False) -> Any:
    """Return the object that settings with ``_target_`` describe, or a function of its remaining arguments.

    ``InputError`` names the setting that is unknown, has another type or is rejected by the constructor.
    """
    _check_arguments(name, values, is_whole=not partial)
    try:
        return instantiate(values, _convert_="all", **({"_partial_": True} if partial else {}))
    except InstantiationException as error:
        # Without a cause, Hydra could not call the target.
        cause = error.__cause__ or InputError(explain(error))
        if is_input_error(cause) or not isinstance(cause, _REFUSALS):
            raise cause from None
        raise InputError(f"{name} cannot be used: {explain(cause).rstrip('.')}.") from cause


def load_source(data: DataSettings) -> Any:
    """Return the data of a source; errors inside a user's function keep their traceback."""
    try:
        return instantiate(data.source, _convert_="all")
    except InstantiationException as error:
        raise error.__cause__ or InputError(explain(error)) from None


def locate_target(target: object, name: str) -> Any:
    """Import the function or class that a setting names, from no other package than it says."""
    try:
        found = get_object(str(target))
    except Exception as error:  # Whatever a module raises.
        raise InputError(f"{name}._target_={target} cannot be imported: {explain(error)}") from error
    package = str(target).partition(".")[0]
    # Modules have those that they import as attributes, by which a folder from somebody else could name any code.
    if package in ("gating", "torch", "pytorch_lightning") and not str(found.__module__).startswith(package):
        raise InputError(f"{name}._target_={target} is of {found.__module__}: give its own name.")
    return found


def _check_arguments(name: str, values: Mapping[str, Any], *, is_whole: bool) -> None:
    """Raise ``InputError`` for settings that a target, or one inside, does not take or needs."""
    if not isinstance(values, Mapping):
        raise InputError(f"{name}={values} cannot be used: give a table with _target_.")
    target = locate_target(values.get("_target_"), name)
    signature, given = inspect.signature(target), {key: values[key] for key in values if not key.startswith("_")}
    try:
        (signature.bind if is_whole else signature.bind_partial)(*values.get("_args_", ()), **given)
    except TypeError as error:
        raise InputError(f"{name} cannot be used: {error}.") from None
    types = _types_of(target) if str(values["_target_"]).startswith("gating.") else {}
    for key, value in given.items():
        if isinstance(value, Mapping) and "_target_" in value:
            _check_arguments(f"{name}.{key}", value, is_whole=not value.get("_partial_"))
        elif key in types:
            _check_type(f"{name}.{key}", value, types[key])


def _types_of(target: Callable[..., Any]) -> dict[str, Any]:
    signed = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    try:
        return typing.get_type_hints(signed, include_extras=True)
    except NameError:
        return {}  # Names imported only for type checkers.


def _check_type(name: str, value: object, expected: Any) -> None:
    try:
        read = TypeAdapter(expected, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except (PydanticSchemaGenerationError, SchemaError):
        return  # A type that settings cannot express.
    except ValidationError as error:
        # Report the error of the union member that parsed furthest.
        reason = max(error.errors(), key=lambda problem: len(problem["loc"]))["msg"]
        raise InputError(f"{name}={value} cannot be used: {reason[0].lower()}{reason[1:]}.") from None
    # Pydantic converts "18", true and 4.0 to other types, but the target gets the original value.
    if type(read) in _KINDS and isinstance(value, (str, bool, float)) and type(value) is not type(read):
        raise InputError(f"{name}={value} cannot be used: input should be {_KINDS[type(read)]}.")


def build_objective(values: Mapping[str, Any]) -> Any:
    """Return the objective without its speedup, which a measured budget replaces (gating/run/measured_budget.py)."""
    if values.get("speedup") is not None:
        from gating.pruning.latency_costs import check_speedup

        others = {name: values.get(name) for name in ("num_heads", "num_neurons", "keep")}
        check_speedup(values["speedup"], **others)
    return build("objective", {name: value for name, value in values.items() if name != "speedup"})


def _budget_of(objective: Mapping[str, Any]) -> dict[str, Any]:
    return {name: objective.get(name) for name in ("speedup", "keep", "cost", "uniform")}


def _with_partial_metrics(task: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a task in which classes of metrics are functions of the arguments that the data give."""
    metrics = task.get("metrics")
    if isinstance(metrics, Mapping) and "_target_" in metrics:
        metrics = [metrics]
    named = metrics.items() if isinstance(metrics, Mapping) else enumerate(metrics) if metrics else ()
    made = {name: {**one, "_partial_": True} if isinstance(one, Mapping) else one for name, one in named}
    return {**task, "metrics": made if isinstance(metrics, Mapping) else [*made.values()]} if metrics else dict(task)


def _split_data(values: Mapping[str, Any], task: Task) -> DataSettings:
    """Divide the settings of the data among source, task and batches; null is left to the task or another one."""
    left = dict(values)
    about, allow_changed = left.pop("about", None), bool(left.pop("allow_changed", False))
    taken = []
    for function in (ExampleDataModule, task.prepare):
        types, parameters = _types_of(function), inspect.signature(function).parameters
        own = [key for key, parameter in parameters.items() if parameter.kind == parameter.KEYWORD_ONLY]
        taken.append({key: left.pop(key) for key in own if key in left})
        for key, value in taken[-1].items():
            if value is not None and key in types:
                _check_type(f"data.{key}", value, types[key])
    batching, preparation = ({key: value for key, value in part.items() if value is not None} for part in taken)
    parameters = inspect.signature(locate_target(left.get("_target_"), "data")).parameters
    source = {key: value for key, value in left.items() if value is not None or key in parameters}
    _check_arguments("data", source, is_whole=True)
    return DataSettings(source, preparation, batching, about, allow_changed)


def teacher_in(place: str, source: ModelSource) -> Pretrained:
    """Return the source of a dense model to learn from, whose weights are of the type of the model's own."""
    return Pretrained(place, dtype=getattr(source, "dtype", "float32"))


def trains_weights(settings: Settings, objects: RunObjects, phase: Phase) -> bool:
    """Return whether a phase trains weights of the model, or adapters of them."""
    return not settings.freezes(phase) or not isinstance(objects.adapters, NoAdapters)


def teaches_itself(settings: Settings, objects: RunObjects) -> bool:
    """Return whether the gates learn from the model with all of them open: its weights are frozen in the search."""
    is_alone = objects.distillation is not None and objects.teacher is None
    return is_alone and objects.objective is not None and settings.freezes(Phase.SEARCH) and not settings.plan.ranks
