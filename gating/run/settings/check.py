"""Validation of settings against the signatures that take them, before anything is loaded."""

import inspect
import pydoc
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, PydanticSchemaGenerationError, StringConstraints, TypeAdapter, ValidationError
from pydantic_core import SchemaError

from gating.errors import InputError
from gating.run.settings.misspelled import OF_RUNS, check_names

__all__ = [
    "check_call",
    "check_complete",
    "check_settings",
    "is_optimizer",
    "keywords",
    "locate_target",
    "take_arguments",
    "takes_any",
]

_MISSING = "???"
_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
# Lightning takes 1e3 steps, too.
_Steps = Annotated[float, Field(multiple_of=1)]
# Batches, or a share of all.
_LIMIT = Annotated[int, Field(ge=0, strict=True)] | Annotated[float, Field(ge=0, le=1)]
# Types of the settings outside of groups.
_OF_RUN: Mapping[str, Any] = {
    "output_dir": Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)],
    "overwrite": bool,
    "resume": str | None,
    "ckpt_path": str | None,
    "seed": Annotated[int, Field(ge=0, lt=2**32)],
    "recovery": Annotated[float, Field(ge=0, lt=1)],
    "compile": bool,
    "gradient_checkpointing": bool,
    "recovery_keep": Literal["best", "last"],
    "keep_checkpoints": bool,
    "optimized_metric": str | None,
    "push_to_hub": str | None,
    "exports": list[Literal["onnx", "onnx-int8", "openvino", "gguf", "gguf-q8_0"]],
    # Interpolations need it; each phase of a run replaces it.
    "phase": Literal["teacher", "dense", "search", "removed", "recovery"],
}
# Of the end of a sweep.
_OF_SWEEP: Mapping[str, Any] = {"max_drop": Annotated[float, Field(ge=0, allow_inf_nan=False)]}
# Of Lightning's trainer, as far as a run reads them itself.
_OF_TRAINER: Mapping[str, Any] = {
    "max_epochs": Annotated[float, Field(ge=-1, allow_inf_nan=False)],
    "max_steps": Annotated[_Steps, Field(ge=-1)],
    "accelerator": Any,
    "devices": Any,
    "gradient_clip_val": Annotated[float, Field(ge=0, allow_inf_nan=False)] | None,
    "accumulate_grad_batches": Annotated[int, Field(ge=1)],
    "limit_train_batches": _LIMIT,
    "limit_val_batches": _LIMIT,
    "val_check_interval": Annotated[int, Field(ge=1, strict=True)] | Annotated[float, Field(gt=0, le=1)],
    "log_every_n_steps": Annotated[_Steps, Field(ge=1)],
}
_OPTIONAL_OF_TRAINER: Mapping[str, Any] = {
    "max_time": str | dict[str, float] | None,
    "limit_test_batches": _LIMIT | None,
}

# Groups that only change others, and groups without a target.
_CHANGES = {"debug", "experiment", "hparams_search", "hydra", "sweep"}
_PLAIN = {"callbacks", "paths"}


def check_complete(settings: Mapping[str, Any], *, groups: Collection[str]) -> None:
    """Check that all settings that every run reads are present.

    Raises:
        InputError: A setting is missing; the message has its dotted name.
    """
    needed = [*_OF_RUN, "convergence", *sorted(set(groups) - _CHANGES), "paths.checkpoints"]
    for group in {*groups, "convergence"} - _CHANGES:
        values = settings.get(group)
        if group in settings and values is None and group != "convergence":
            raise InputError(f"{group}=null cannot be used: {group} is a group of settings.")
        if isinstance(values, Mapping):
            # An empty distillation group means no distillation.
            needed += [] if group in _PLAIN or (group == "distillation" and not values) else [f"{group}._target_"]
            needed += [f"trainer.{name}" for name in _OF_TRAINER] if group == "trainer" else []
    needed += [f"{name}._target_" for name, value in _callbacks(settings) if isinstance(value, Mapping)]
    for name in needed:
        here: Any = settings
        for part in name.split("."):
            if part not in here:
                remedy = f"give {name}=null" if name == "convergence" else f"leave ~{name} out of the command"
                if name.startswith("callbacks."):
                    raise InputError(f"{name} is missing: give the class of the callback.")
                raise InputError(f"{name} is missing, which every run needs: {remedy}.")
            here = here[part]


def check_settings(
    settings: Mapping[str, Any], *, groups: Collection[str], also: Mapping[str, Sequence[Callable[..., Any]]]
) -> None:
    """Check the name and type of every setting against the signature that takes it.

    Groups with a ``_target_`` of this package are compared with its signature, and with further functions, ``also``.

    Raises:
        InputError: A setting is unknown, missing or of the wrong type; the message has its dotted name.
    """
    check_names("", settings, {*_OF_RUN, *groups})
    _check_values("", settings, _OF_RUN)
    for name, value in [*((name, settings.get(name)) for name in groups), *_callbacks(settings)]:
        if value is not None and not isinstance(value, Mapping):
            raise InputError(f"{name}={value} cannot be used: {name} is a group of settings.")
    for group, values in settings.items():
        if isinstance(values, Mapping):
            _check_group(f"{group}.", values, also.get(group, ()))
        if group == "sweep":
            check_names("sweep.", values, _OF_SWEEP)
            _check_values("sweep.", values, _OF_SWEEP)
        if group == "paths":
            _check_values("paths.", values, dict.fromkeys(values, str))
        if group == "trainer":
            _check_values("trainer.", values, {**_OF_TRAINER, **_OPTIONAL_OF_TRAINER})
            target = locate_target(values["_target_"], "trainer.")
            if not takes_any(target):
                check_names("trainer.", values, _parameter_types(target))


def _callbacks(settings: Mapping[str, Any]) -> list[tuple[str, Any]]:
    callbacks = settings.get("callbacks")
    return [(f"callbacks.{name}", value) for name, value in callbacks.items()] if isinstance(callbacks, Mapping) else []


def is_optimizer(target: Callable[..., Any]) -> bool:
    """Return whether a target is a class of optimizers, such as ``torch.optim.SGD``."""
    return isinstance(target, type) and issubclass(target, torch.optim.Optimizer)


def take_arguments(function: Callable[..., Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Remove the arguments of a function from settings, and return them."""
    return {name: settings.pop(name) for name in inspect.signature(function).parameters if name in settings}


def keywords(function: Callable[..., Any]) -> set[str]:
    """Return the names of the keyword-only parameters of a function."""
    return {p.name for p in inspect.signature(function).parameters.values() if p.kind == p.KEYWORD_ONLY}


def _check_group(prefix: str, settings: Mapping[str, Any], also: Sequence[Callable[..., Any]]) -> None:
    target = settings.get("_target_")
    types: dict[str, Any] = {}
    if isinstance(target, str) and (target.startswith("gating.") or also):
        called = locate_target(target, prefix)
        types |= _parameter_types(called)
        for function in also:
            # Positional arguments come from the run.
            own = keywords(function)
            types |= {name: kind for name, kind in _parameter_types(function).items() if name in own}
        if not takes_any(called):
            check_names(prefix, settings, types.keys() - (OF_RUNS if is_optimizer(called) else set()))
    _check_values(prefix, settings, types)
    for key, value in settings.items():
        if isinstance(value, Mapping):
            _check_group(f"{prefix}{key}.", value, ())


def check_call(function: Callable[..., Any], settings: Mapping[str, Any], *, name: str) -> None:
    """Check that a function takes settings as its keyword arguments, without calling it.

    Raises:
        InputError: The function does not take them.
    """
    arguments = {key: value for key, value in settings.items() if not key.startswith("_")}
    try:
        inspect.signature(function).bind(*settings.get("_args_", ()), **arguments)
    except TypeError as error:
        raise InputError(f"{name} cannot be used: {settings['_target_']}: {error}.") from error


def locate_target(target: object, prefix: str) -> Callable[..., Any]:
    """Import the function or class that a setting names.

    Raises:
        InputError: It does not exist, has no signature, or importing its module fails.
    """
    try:
        function = pydoc.locate(target) if isinstance(target, str) else None
    except pydoc.ErrorDuringImport as error:
        reason = " ".join(f"{type(error.value).__name__}: {error.value}".split())
        raise InputError(f"{prefix}_target_={target} cannot be imported ({reason}). Correct its module.") from error
    if not callable(function):
        hint = "" if str(target).startswith("gating.") else " Is the folder of its module in PYTHONPATH?"
        raise InputError(f"{prefix}_target_={target} does not exist.{hint}")
    try:
        inspect.signature(function)
    except ValueError as error:
        raise InputError(
            f"{prefix}_target_={target} does not tell which arguments it takes: name a function or class of Python."
        ) from error
    return function


def _parameter_types(function: Callable[..., Any]) -> dict[str, Any]:
    signed = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    try:
        hints = typing.get_type_hints(signed, include_extras=True)
    except NameError:
        hints = {}  # Names imported only for type checkers.
    return {name: hints.get(name, Any) for name in inspect.signature(function).parameters if name != "self"}


def takes_any(function: Callable[..., Any]) -> bool:
    """Return whether a function takes keyword arguments of any name."""
    return any(p.kind == p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def _check_values(prefix: str, settings: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, str) and value == _MISSING:
            raise InputError(f"{name} is needed: add {name}=... to the command.")
        if key in types and not (isinstance(value, Mapping) and "_target_" in value):
            _check_type(name, value, types[key])


def _check_type(name: str, value: object, expected: Any) -> None:
    try:
        read = TypeAdapter(expected, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except (PydanticSchemaGenerationError, SchemaError):
        read = None  # A type that settings cannot express.
    except ValidationError as error:
        # Report the error of the union member that parsed furthest.
        reason = max(error.errors(), key=lambda problem: len(problem["loc"]))["msg"]
        raise InputError(f"{name}={value} cannot be used: {reason[0].lower()}{reason[1:]}.") from None
    if isinstance(value, Mapping) and not isinstance(read, Mapping):
        raise InputError(f"{name}._target_ is missing: give the class or function of {name}.")
    # Pydantic converts "18", true and 4.0 to other types, but the target gets the original value.
    if isinstance(value, float) and type(read) is int:
        raise InputError(f"{name}={value} cannot be used: give an integer, such as {name}={read}.")
    if read is not None and isinstance(value, (str, bool)) and type(read) is not type(value):
        raise InputError(f"{name}={value} cannot be used: input should be {_KINDS.get(type(read), type(read))}.")
