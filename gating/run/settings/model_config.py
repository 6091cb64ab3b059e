"""Values of the model's configuration that the data decide."""

from collections.abc import Mapping
from typing import Any

from gating.errors import InputError, shorten

__all__ = ["check_model_config"]

_OF_DATA = ("num_labels", "id2label", "label2id", "problem_type")


def check_model_config(model: Mapping[str, Any], decided: Mapping[str, Any]) -> None:
    """Check that the settings of a model do not contradict the classes of the data.

    Args:
        model: The settings of the model.
        decided: Values of its configuration that the task takes from the data.

    Raises:
        InputError: A value differs, which would be replaced.
    """
    given = model.get("config")
    given = given if isinstance(given, Mapping) else {}
    for name in _OF_DATA:
        if name in given and name in decided and _plain(given[name]) != _plain(decided[name]):
            raise InputError(
                f"model.config.{name}={shorten(str(given[name]))} cannot be used: the data and the task decide it, "
                f"{shorten(str(decided[name]))}. Leave it out."
            )


def _plain(value: Any) -> Any:
    """Return a value with texts in place of numbers: the keys of settings may be either."""
    return {str(key): str(one) for key, one in value.items()} if isinstance(value, Mapping) else value
