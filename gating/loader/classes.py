"""Classes of modules that lost units: parts that change a ``forward``, and subclasses made of them.

Assigning a subclass to ``module.__class__`` keeps hooks and ``isinstance`` checks, by which transformers collects
attention probabilities. A subclass has the name of its base, exists once, and its modules can be copied and pickled.
"""

from typing import Any

from torch import nn

__all__ = ["CLASSES", "MIXINS", "PARTS", "freeze", "part", "subclass"]

# Functions and classes that a record can name, and base classes of every compact model.
PARTS: dict[str, Any] = {}
MIXINS: list[type] = []
CLASSES: dict[tuple[object, ...], type[Any]] = {}


def part(function: Any) -> Any:
    """Register a function or class under its name, so that records can name it."""
    PARTS[function.__name__] = function
    return function


def subclass(base: type[nn.Module], *parts: tuple[Any, ...]) -> type[nn.Module]:
    """Return the subclass of a class with the members that parts return: functions of it and of their arguments."""
    base = getattr(base, "original_class", base)
    key = (base, *parts)
    if parts and key not in CLASSES:
        members = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
        # Pickle would look the class up by its name and find the base.
        members |= {"original_class": base, "parts": parts, "__reduce_ex__": lambda self, _: (_new, key, vars(self))}
        for make_members, *arguments in parts:
            members |= make_members(base, *arguments)
        CLASSES[key] = type(base.__name__, (base,), members)
    return CLASSES.get(key, base)


def _new(*key: Any) -> nn.Module:
    cls = subclass(*key)
    return cls.__new__(cls)


def freeze(value: Any) -> Any:
    """Return a value with tuples for lists."""
    return tuple(map(freeze, value)) if isinstance(value, list) else value
