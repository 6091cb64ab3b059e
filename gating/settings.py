"""Checking a run's settings against the signatures they are meant for, before anything is loaded."""

import inspect
import pydoc
import typing
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

__all__ = ["check_settings", "take_arguments"]


def check_settings(settings: Mapping[str, Any], *, prefix: str = "") -> None:
    """Compare every value under a ``_target_`` of this package with the type that the target's signature gives it.

    Args:
        settings: Nested plain values, as composed from ``conf/``.
        prefix: Dotted name of the place the settings stand at.

    Raises:
        ValueError: A key is unknown or a value has the wrong type; the message has the dotted name.
    """
    target = settings.get("_target_")
    parameters = _parameters(target) if isinstance(target, str) and target.startswith("gating.") else {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            check_settings(value, prefix=f"{name}.")
        elif key in parameters:
            _check_type(name, value, parameters[key])


def take_arguments(function: Callable[..., Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Remove from settings those that a function has a parameter for, and return them."""
    return {name: settings.pop(name) for name in inspect.signature(function).parameters if name in settings}


def _parameters(target: str) -> dict[str, Any]:
    function = pydoc.locate(target)
    if function is None:
        raise ValueError(f"_target_={target} does not exist.")
    signed = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    return typing.get_type_hints(signed)


def _check_type(name: str, value: object, expected: Any) -> None:
    try:
        TypeAdapter(expected, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except PydanticSchemaGenerationError:
        return  # Not a type that can be written in a configuration.
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ValueError(f"{name}={value!r} is of the wrong kind: {reason[0].lower()}{reason[1:]}.") from None
