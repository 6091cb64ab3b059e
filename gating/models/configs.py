"""Changes to model configurations, checked by name and type."""

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from gating.errors import InputError

__all__ = ["MAX_CLASSES", "check_names", "check_sizes", "load_checked", "without_generation_values"]

# The largest models have about a hundred layers, and contexts of ten million tokens.
_MAX_LAYERS = 10_000
_MAX_SIZE = 1_000_000_000
# Numbers of layers, not sizes of each layer.
_LAYERS = re.compile(r"(.*_)?(num|n)_(.*_)?layers?|.*_layers")
MAX_CLASSES = 100_000


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
    check_sizes(changes, name="model.config")


def check_sizes(values: Mapping[str, Any], *, name: str) -> None:
    """Check that no size of a model is absurd, before minutes are spent on building it.

    Args:
        values: Configuration values.
        name: Where they come from, for messages.

    Raises:
        ValueError: A number of classes, layers or others is too large for any model.
    """
    for key, value in values.items():
        if isinstance(value, PreTrainedConfig):
            check_sizes(vars(value), name=f"{name}.{key}")
        if not isinstance(value, int) or key.endswith("_id"):
            continue
        most = MAX_CLASSES if key == "num_labels" else _MAX_LAYERS if _LAYERS.fullmatch(key) else _MAX_SIZE
        if value > most:
            raise InputError(f"{name}.{key}={value} is larger than in any model: give at most {most}.")


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
