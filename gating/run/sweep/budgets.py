"""The budgets of runs as text, and the settings in which runs differ."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gating.objectives.budget import DEFAULT_KEEP

MEASURED = ("keep", "cost")
from gating.run.settings import has_effect, is_dense, shown_value
from gating.storage.same_settings import leaves

__all__ = ["as_text", "budget_text", "differing", "of_group", "settings_texts", "units_text"]

# Settings of a budget, of which an objective takes one, and their values as text.
_BUDGETS = {
    "num_heads": "{} heads",
    "num_neurons": "{} neurons",
    "keep": "keep {}",
    "speedup": "{}x",
    "price": "price {}",
}
_MEASURED = tuple(f"objective.{name}" for name in MEASURED)
# Where a group's object differs, its other settings differ with it.
_NAMES = ("_target_", "name")


def budget_text(settings: Mapping[str, Any], *, with_units: bool) -> str:
    """Return the budget of a run as text, with its gated units where they differ between runs.

    >>> budget_text({"objective": {"_target_": "gating.ExactBudget", "num_heads": 18}}, with_units=False)
    '18 heads'
    """
    if is_dense(settings):
        return "dense"
    objective = settings["objective"]
    given = {name: objective[name] for name in _BUDGETS if objective.get(name) is not None}
    if "speedup" in given:
        given = {"speedup": given["speedup"]}  # The others were measured from it.
    if not given and "keep" in objective:
        given = {"keep": DEFAULT_KEEP}
    text = ", ".join(_shown(name, value) for name, value in given.items()) or "default budget"
    return f"{text}, {units_text(settings)}" if with_units else text


def units_text(settings: Mapping[str, Any]) -> str:
    """Return the gated units of a run as text.

    >>> units_text({"gates": {"units": ["heads", "neurons"]}}), units_text({"gates": None})
    ('heads+neurons', 'heads')
    """
    gates = settings.get("gates")
    units = gates.get("units", "heads") if isinstance(gates, Mapping) else "heads"
    return "+".join(map(str, units)) if isinstance(units, list) else str(units)


def _shown(name: str, value: Any) -> str:
    """Return one budget as text.

    >>> _shown("num_heads", 1), _shown("num_neurons", 64)
    ('1 head', '64 neurons')
    """
    text = _BUDGETS[name].format(as_text(value))
    return text.removesuffix("s") if value == 1 and name.startswith("num_") else text


def differing(runs: Sequence[Mapping[str, Any]], *, besides: Sequence[str] = ("gates.units",)) -> list[str]:
    """Return the names of settings in which runs differ, besides budget, seed and those of no effect."""
    tables = [_with_effect(settings) for settings in runs]
    # Settings that were measured in some runs are compared among the others.
    chosen = [table for settings, table in zip(runs, tables, strict=True) if not _measured(settings)]
    unlike = []
    for name in sorted({name for table in tables for name in table}):
        values = [table.get(name) for table in (chosen if name.startswith(_MEASURED) else tables)]
        if len({json.dumps(value, default=str) for value in values}) > 1:
            unlike.append(name)
    unlike = [name for name in unlike if name not in besides and name.removeprefix("objective.") not in _BUDGETS]
    replaced = {name.rpartition(".")[0] for name in unlike if name.rpartition(".")[2] in _NAMES}
    return [
        name
        for name in unlike
        if name.rpartition(".")[2] in _NAMES or not any(name.startswith(f"{group}.") for group in replaced)
    ]


def settings_texts(settings: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    """Return some settings of a run as texts, without limits of training that it does not have.

    >>> run = {"objective": {}, "trainer": {"max_epochs": 3, "max_steps": -1, "max_time": None}}
    >>> settings_texts(run, ["trainer.max_epochs", "trainer.max_steps", "trainer.max_time"])
    ('trainer.max_epochs=3',)
    """
    own = _with_effect(settings)
    return tuple(f"{name}={as_text(own[name])}" for name in names if name in own and own[name] != -1)


def of_group(settings: Mapping[str, Any]) -> str:
    """Return a text that is equal for runs that differ in nothing but their seed."""
    return json.dumps(sorted(_with_effect(settings).items()), default=str)


def _with_effect(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run that change its results, without its seed, by dotted name."""
    measured = _measured(settings)
    return {
        name: shown_value(name, value)
        for name, value in leaves(settings)
        # A setting without a value is as good as one that is left out.
        if value is not None
        and has_effect(name, on="results")
        and name.rpartition(".")[2] != "seed"
        and not (measured and name.startswith(measured))
    }


def _measured(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the beginnings of the names of settings that a run has measured."""
    return _MEASURED if settings["objective"].get("speedup") is not None else ()


def as_text(value: Any) -> str:
    """Return the value of a setting as text, numbers with four digits.

    >>> as_text(0.13920570), as_text({"encoder": 12, "decoder": 8}), as_text(["accuracy", "f1"])
    ('0.1392', 'encoder 12, decoder 8', '[accuracy,f1]')
    """
    if isinstance(value, list):
        return f"[{','.join(map(as_text, value))}]"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {as_text(part)}" for key, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
