"""Tables of the results."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import records
from benchmarks.measuring import ratio
from benchmarks.sharding.memory import MIB

# Training keeps gradients and both moments of AdamW besides the parameters.
_STATE = 4
Row = dict[str, Any]
Columns = Mapping[str, Callable[[Row], str]]


def _markdown(rows: Sequence[Row], columns: Columns, notes: Sequence[str] = ()) -> list[str]:
    """Return the machines of results, a table with a function of the row for each heading, and notes below it."""
    lines = [f"| {' | '.join(columns)} |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    lines += [f"| {' | '.join(text(row) for text in columns.values())} |" for row in rows]
    return [*records.facts(rows), *lines, *(line for note in notes for line in ("", note))]


def _beyond_new(row: Row, name: str) -> float:
    """Return the largest peak over all ranks above the old shards and the new ones, in layers."""
    beyond = max(peak - new for peak, new in zip(row[name], row["new_shards"], strict=True))
    return beyond / row["layer"][0]


def _of_state(row: Row) -> float:
    """Return the shards and the peak of a removal as a share of the training state of the process with the most."""
    return max((own + peak) / (_STATE * own) for own, peak in zip(row["shards"], row["peak"], strict=True))


def _steps_ratio(row: Row) -> str:
    middle, low, high = ratio({name: row[name][0] for name in ("fsdp", "ddp")}, "fsdp", "ddp")
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def _mib(size: float) -> str:
    return _number(size / MIB)


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


_ABOUT: Columns = {
    "model": lambda row: f"{row['hidden']} wide, {row['layers']} layers",
    "processes": lambda row: str(row["processes"]),
}
_STATES: Columns = {
    **_ABOUT,
    "all, MiB": lambda row: _mib(row["all"][0]),
    "share, MiB": lambda row: _mib(row["all"][0] / row["processes"]),
    "largest process, MiB": lambda row: _mib(max(row["own"])),
    "largest / share": lambda row: f"{max(row['own']) * row['processes'] / row['all'][0]:.4f}",
    "gates in each, KiB": lambda row: _number(1024 * row["gates"][0] / MIB),
}
_STEPS: Columns = {
    **_ABOUT,
    "tokens of each": lambda row: f"{row['batch_size']} x {row['length']}",
    "FSDP2 / DDP": _steps_ratio,
}
_REMOVALS: Columns = {
    "model": _ABOUT["model"],
    "half of": lambda row: " and ".join(row["units"]),
    "one layer, MiB": lambda row: _mib(row["layer"][0]),
    "shards, MiB": lambda row: _mib(max(row["shards"])),
    "new shards, MiB": lambda row: _mib(max(row["new_shards"])),
    "removal, MiB of each rank": lambda row: ", ".join(map(_mib, row["peak_removal"])),
    "beyond new shards, layers": lambda row: f"{_beyond_new(row, 'peak_removal'):.2f}",
    "with proof, MiB of each rank": lambda row: ", ".join(map(_mib, row["peak"])),
    "beyond new shards with proof, layers": lambda row: f"{_beyond_new(row, 'peak'):.2f}",
    "one forward pass, layers": lambda row: f"{max(row['peak_forward']) / row['layer'][0]:.2f}",
    "shards and peak / training state": lambda row: f"{_of_state(row):.2f}",
    "removal, s": lambda row: _number(max(row["seconds_removal"])),
    "with proof, s": lambda row: _number(max(row["seconds"])),
}
_NOT_OF_GROWTH = ("half of", "one layer, MiB", "shards, MiB", "shards and peak / training state")
_LOADING: Columns = {
    **_ABOUT,
    "model, MiB": lambda row: _mib(row["model"][0]),
    "share, MiB": lambda row: _mib(row["model"][0] / row["processes"]),
    "peak sharded, MiB": lambda row: _mib(max(row["peak"])),
    "peak whole, MiB": lambda row: _mib(max(row["whole"])),
    "sharded / whole": lambda row: f"{max(row['peak']) / max(row['whole']):.2f}",
}


def _growth(rows: Sequence[Row]) -> list[str]:
    """Show memory and time of removals over the number of layers, with linear fits."""
    rows = sorted(rows, key=lambda row: row["layers"])
    fits: dict[str, tuple[str, Callable[[Row], float]]] = {
        "Time of the removal": ("s", lambda row: max(row["seconds_removal"])),
        "Time with proof": ("s", lambda row: max(row["seconds"])),
        "Peak of the removal beyond old and new shards": ("layers", lambda row: _beyond_new(row, "peak_removal")),
        "New shards": ("layers", lambda row: max(row["new_shards"]) / row["layer"][0]),
    }
    notes = []
    for title, (unit, value) in fits.items():
        points = [(row["layers"], value(row)) for row in rows]
        slope, start = statistics.linear_regression(*zip(*points, strict=True))
        off = max(abs(start + slope * number - found) for number, found in points)
        line = f"{start:.2f} {unit} and {slope:.3f} {unit} for each layer of the model"
        notes.append(f"{title}: {line}; the fit is off by at most {off:.2f} {unit}.")
    most = max(_beyond_new(row, "peak") for row in rows)
    notes.append(f"Peak with proof beyond old and new shards: at most {most:.2f} layers.")
    columns = {heading: text for heading, text in _REMOVALS.items() if heading not in _NOT_OF_GROWTH}
    return _markdown(rows, columns, notes)


def _loaded(rows: Sequence[Row]) -> list[str]:
    """Show the peak of loading, sharded beside whole."""
    whole = {(row["hidden"], row["layers"]): row["peak"] for row in rows if not row["sharded"]}
    return _markdown(
        [{**row, "whole": whole[row["hidden"], row["layers"]]} for row in rows if row["sharded"]], _LOADING
    )


TABLES: dict[str, Callable[[Sequence[Row]], list[str]]] = {
    "state": lambda rows: _markdown(rows, _STATES),
    "steps": lambda rows: _markdown(rows, _STEPS),
    "removal": lambda rows: _markdown(rows, _REMOVALS),
    "growth": _growth,
    "loading": _loaded,
}
