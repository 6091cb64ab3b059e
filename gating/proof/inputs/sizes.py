"""Sizes of a model's inputs, from its configuration and those of its towers."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["Request", "Variant", "accepted_arguments", "find_setting", "required_arguments"]

# Inputs by argument name.
Variant = dict[str, Tensor]


@dataclass(frozen=True)
class Request:
    """The model that inputs are made for, and their sizes.

    Attributes:
        model: The model.
        batch_size: Number of examples.
        length: Number of tokens, or frames of sound, of each example.
        generator: Source of random values.
    """

    model: PreTrainedModel
    batch_size: int
    length: int
    generator: torch.Generator

    @property
    def accepted(self) -> set[str]:
        """Names of the arguments of ``forward``."""
        return accepted_arguments(self.model.forward)

    def setting(self, *names: str, tower: str = "") -> Any:
        """Return the first of some settings that the configuration has, first those of a tower; None without one."""
        return find_setting(self.model.config, *names, tower=tower)

    def random(self, *shape: int) -> Tensor:
        """Return normally distributed values."""
        return torch.randn(*shape, generator=self.generator)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Return whole numbers from ``low`` to ``high - 1``."""
        return torch.randint(low, max(high, low + 1), shape, generator=self.generator)


def accepted_arguments(function: Any) -> set[str]:
    """Return the names of a function's arguments, without those for any others."""
    return {name for name, one in inspect.signature(function).parameters.items() if one.kind not in _ANY}


def required_arguments(function: Any) -> set[str]:
    """Return the names of a function's arguments without a default."""
    parameters = inspect.signature(function).parameters.items()
    return {name for name, one in parameters if one.default is one.empty and one.kind not in _ANY}


def find_setting(config: PreTrainedConfig, *names: str, tower: str = "") -> Any:
    """Return the first of some settings that a configuration, or one inside it, has; None without one.

    A configuration inside whose name has the ``tower`` in it is asked first.

    Example:
        >>> from transformers import CLIPConfig
        >>> find_setting(CLIPConfig(), "image_size", tower="vision")
        224
    """
    levels = list(_walk(config))
    ordered = [one for path, one in levels if tower and tower in path] + [one for _, one in levels]
    for one in ordered:
        for name in names:
            value = getattr(one, name, None)
            if value is not None:
                return value
    return None


def _walk(config: PreTrainedConfig, path: str = "") -> Iterator[tuple[str, PreTrainedConfig]]:
    """Yield a configuration, then those inside it, with the dotted names of their attributes."""
    yield path, config
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield from _walk(value, f"{path}.{name}")


_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
