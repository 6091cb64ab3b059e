"""Changes to model configurations, checked by name and type."""

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from gating.errors import InputError

__all__ = ["check_layers", "check_names", "load_checked", "without_generation_values"]

# Names of numbers of layers; the largest models have about a hundred.
_LAYERS = re.compile(r"(.*_)?(num|n)_(.*_)?layers?|.*_layers")
_MAX_LAYERS = 10_000


def check_names(config: PreTrainedConfig, changes: Mapping[str, Any]) -> None:
    """Check that a configuration has all values that are changed.

    Raises:
        ValueError: It lacks one; the message suggests a similar name.
    """
    for name in changes:
        if not hasattr(config, name):
            close = difflib.get_close_matches(name, config.to_dict(), n=1)
            hint = f" Did you mean model.config.{close[0]}?" if close else ""
            raise InputError(f"model.config.{name} is not a value of a {config.model_type} configuration.{hint}")


def check_layers(config: PreTrainedConfig, *, name: str = "model.config") -> None:
    """Check a configuration for so many layers that even a model without weights takes minutes to build.

    Raises:
        ValueError: A number of layers is too large for any model.
    """
    for key, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            check_layers(value, name=f"{name}.{key}")
        elif isinstance(value, int) and value > _MAX_LAYERS and _LAYERS.fullmatch(key):
            raise InputError(f"{name}.{key}={value} is larger than in any model: give at most {_MAX_LAYERS}.")


def load_checked(load: Callable[[], PreTrainedConfig]) -> PreTrainedConfig:
    """Return a loaded configuration.

    Raises:
        ValueError: A value has the wrong type.
    """
    try:
        return load()
    except StrictDataclassError as error:
        raise InputError(f"model.config cannot be used: {' '.join(str(error).split())}") from error


def without_generation_values(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes without the values that only a generation config has."""
    return {name: value for name, value in changes.items() if name != "forced_bos_token_id"}
