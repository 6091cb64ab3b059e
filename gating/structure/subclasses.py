"""Subclasses of attention classes, made while a program runs.

Changing ``module.__class__`` to a subclass keeps the module's hooks, its place in the model and ``isinstance`` checks
(transformers collects attention probabilities by class). The subclasses have the names of their bases. Each exists
once, and modules of them can be copied and pickled.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

__all__ = ["bind_arguments", "original_class", "subclass"]

_CLASSES: dict[tuple[object, ...], type[nn.Module]] = {}


def subclass(base: type[nn.Module], make_members: Callable[..., dict[str, Any]], *arguments: Any) -> type[nn.Module]:
    """Return the subclass of an attention class with the members that a function makes.

    Args:
        base: An attention class, or a subclass of one made here, which then is replaced, not inherited from.
        make_members: A module-level function; called with the attention class and the arguments.
        *arguments: Hashable and picklable.
    """
    base = original_class(base)
    key = (base, make_members, *arguments)
    if key not in _CLASSES:
        members = {
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "original_class": base,
            # Pickle would look for the class by its name and find the base.
            "__reduce_ex__": lambda self, _: (_new, (base, make_members, *arguments), self.__getstate__()),
            **make_members(base, *arguments),
        }
        _CLASSES[key] = type(base.__name__, (base,), members)
    return _CLASSES[key]


def original_class(attention_class: type[nn.Module]) -> type[nn.Module]:
    """Return the attention class that a subclass was made of, or the class itself."""
    original: type[nn.Module] = getattr(attention_class, "original_class", attention_class)
    return original


def bind_arguments(
    attention_class: type[nn.Module],
) -> Callable[[tuple[object, ...], Mapping[str, object]], dict[str, Any]]:
    """Return a function that gives names to the arguments of an attention class's ``forward``.

    The names are read once, not at each call: compilers do not follow ``inspect``.
    """
    names = list(inspect.signature(attention_class.forward).parameters)[1:]
    return lambda args, kwargs: {**dict(zip(names, args, strict=False)), **kwargs}


def _new(base: type[nn.Module], make_members: Callable[..., dict[str, Any]], *arguments: Any) -> nn.Module:
    cls = subclass(base, make_members, *arguments)
    return cls.__new__(cls)
