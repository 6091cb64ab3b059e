"""Settings of a training that is resumed: compared with those that it began with."""

from collections.abc import Mapping
from typing import Any

from gating.errors import InputError

# Characters of a value in a message.
_MOST_SHOWN = 200
# In these settings, 1 is one batch and 1.0 is all of them; 1 and 1.0 are the same value of any other setting.
_NUMBERS_OR_SHARES = (
    *("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"),
    *("overfit_batches", "val_check_interval"),
)


def check_same_settings(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    stored: str,
    present: str,
    remedy: str,
) -> None:
    """Raise ``InputError`` if a setting that changes the result differs.

    Example:
        >>> check_same_settings(
        ...     {"seed": 0}, {"seed": 1}, stored="The run in x has", present="this command", remedy="Leave it out."
        ... )  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        InputError: The run in x has seed=0, and this command seed=1
    """
    changed = find_difference(before, now)
    if changed is not None:
        name, *values = changed
        one, other = (
            text if len(text := str(value)) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..." for value in values
        )
        raise InputError(
            f"{stored} {name}={one}, and {present} {name}={other}: it is resumed with the settings that it began with. "
            f"{remedy}"
        )


def find_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first setting that differs: its dotted name and both values, None if it is missing."""
    old, new = dict(leaves(before)), dict(leaves(now))
    for name in old | new:
        one, other = old.get(name), new.get(name)
        if one != one and other != other:  # NaN equals itself here.
            continue
        is_share = name.rpartition(".")[2] in _NUMBERS_OR_SHARES
        if one != other or (is_share and isinstance(one, float) != isinstance(other, float)):
            return name, one, other
    return None


def leaves(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the values of nested settings with their dotted names.

    Example:
        >>> leaves({"seed": 0, "optimizer": {"lr": 0.1}})
        [('seed', 0), ('optimizer.lr', 0.1)]
    """
    found: list[tuple[str, Any]] = []
    for name, value in settings.items():
        found += leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return found
