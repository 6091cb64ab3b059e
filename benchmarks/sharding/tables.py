"""Tables of the results."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import records
from benchmarks.measuring import ratio
from benchmarks.sharding.memory import MIB

# Training keeps gradients and both moments of AdamW besides the parameters.
_STATE = 4
Row = dict[str, Any]
Cells = list[dict[str, str]]


def beyond_new(row: Row, name: str) -> int:
    """Return the largest peak over all ranks above the old shards and the new ones, in bytes."""
    return max(peak - new for peak, new in zip(row[name], row["new_shards"], strict=True))


def in_layers(row: Row, size: float) -> float:
    """Return bytes in units of one layer's parameters."""
    return size / row["layer"][0]


def _markdown(rows: Sequence[Row], cells: Cells, notes: Sequence[str] = ()) -> list[str]:
    """Return the machines of results, a table of texts by heading, and notes below it."""
    headings = list(cells[0])
    lines = [*records.facts(rows), f"| {' | '.join(headings)} |", "|---" + "|---:" * (len(headings) - 1) + "|"]
    lines += [f"| {' | '.join(row[heading] for heading in headings)} |" for row in cells]
    return [*lines, *(line for note in notes for line in ("", note))]


def state_table(rows: Sequence[Row]) -> list[str]:
    """Show the training state of a process beside its share of the whole."""
    cells = []
    for row in rows:
        share = row["all"][0] / row["processes"]
        cells.append(
            {
                "model": _title(row),
                "processes": str(row["processes"]),
                "all, MiB": _mib(row["all"][0]),
                "share, MiB": _mib(share),
                "largest process, MiB": _mib(max(row["own"])),
                "largest / share": f"{max(row['own']) / share:.4f}",
                "gates in each, KiB": _number(1024 * row["gates"][0] / MIB),
            }
        )
    return _markdown(rows, cells)


def steps_table(rows: Sequence[Row]) -> list[str]:
    """Show the time of a step with FSDP2 in relation to DDP."""
    cells = []
    for row in rows:
        times = {name: row[name][0] for name in ("fsdp", "ddp")}
        middle, low, high = ratio(times, "fsdp", "ddp")
        cells.append(
            {
                "model": _title(row),
                "processes": str(row["processes"]),
                "tokens of each": f"{row['batch_size']} x {row['length']}",
                "FSDP2 / DDP": f"{middle:.2f} ({low:.2f}-{high:.2f})",
            }
        )
    return _markdown(rows, cells)


def removal_table(rows: Sequence[Row]) -> list[str]:
    """Show memory and time of removals; memory of each process where it is that of a peak."""
    return _markdown(rows, _removals(rows))


def _removals(rows: Sequence[Row]) -> Cells:
    return [
        {
            "model": _title(row),
            "half of": " and ".join(row["units"]),
            "one layer, MiB": _mib(row["layer"][0]),
            "shards, MiB": _mib(max(row["shards"])),
            "new shards, MiB": _mib(max(row["new_shards"])),
            "removal, MiB of each rank": _of_each(row["peak_removal"]),
            "beyond new shards, layers": f"{in_layers(row, beyond_new(row, 'peak_removal')):.2f}",
            "with proof, MiB of each rank": _of_each(row["peak"]),
            "beyond new shards with proof, layers": f"{in_layers(row, beyond_new(row, 'peak')):.2f}",
            "one forward pass, layers": f"{in_layers(row, max(row['peak_forward'])):.2f}",
            "shards and peak / training state": f"{_of_state(row):.2f}",
            "removal, s": _number(max(row["seconds_removal"])),
            "with proof, s": _number(max(row["seconds"])),
        }
        for row in rows
    ]


def growth_table(rows: Sequence[Row]) -> list[str]:
    """Show memory and time of removals over the number of layers, with linear fits."""
    rows = sorted(rows, key=lambda row: row["layers"])
    cells = _removals(rows)
    for row in cells:
        for heading in ("half of", "one layer, MiB", "shards, MiB", "shards and peak / training state"):
            del row[heading]
    fits = {
        "Time of the removal": ([max(row["seconds_removal"]) for row in rows], "s"),
        "Time with proof": ([max(row["seconds"]) for row in rows], "s"),
        "Peak of the removal beyond old and new shards": (
            [in_layers(row, beyond_new(row, "peak_removal")) for row in rows],
            "layers",
        ),
        "New shards": ([in_layers(row, max(row["new_shards"])) for row in rows], "layers"),
    }
    notes = [_fit(title, [row["layers"] for row in rows], *values) for title, values in fits.items()]
    most = max(in_layers(row, beyond_new(row, "peak")) for row in rows)
    return _markdown(rows, cells, [*notes, f"Peak with proof beyond old and new shards: at most {most:.2f} layers."])


def loading_table(rows: Sequence[Row]) -> list[str]:
    """Show the peak of loading, sharded beside whole."""
    whole = {(row["hidden"], row["layers"]): row for row in rows if not row["sharded"]}
    cells = []
    for row in rows:
        other = whole.get((row["hidden"], row["layers"]))
        if row["sharded"] and other is not None:
            cells.append(
                {
                    "model": _title(row),
                    "processes": str(row["processes"]),
                    "model, MiB": _mib(row["model"][0]),
                    "share, MiB": _mib(row["model"][0] / row["processes"]),
                    "peak sharded, MiB": _mib(max(row["peak"])),
                    "peak whole, MiB": _mib(max(other["peak"])),
                    "sharded / whole": f"{max(row['peak']) / max(other['peak']):.2f}",
                }
            )
    return _markdown(rows, cells)


TABLES: dict[str, Callable[[Sequence[Row]], list[str]]] = {
    "state": state_table,
    "steps": steps_table,
    "removal": removal_table,
    "growth": growth_table,
    "loading": loading_table,
}


def _title(row: Row) -> str:
    return f"{row['hidden']} wide, {row['layers']} layers"


def _fit(title: str, layers: Sequence[int], values: Sequence[float], unit: str) -> str:
    """Return a line about the linear fit of values over numbers of layers."""
    slope, start = statistics.linear_regression(layers, values)
    left = max(abs(start + slope * number - value) for number, value in zip(layers, values, strict=True))
    return (
        f"{title}: {start:.2f} {unit} and {slope:.3f} {unit} for each layer of the model; the fit is off by at most "
        f"{left:.2f} {unit}."
    )


def _of_state(row: Row) -> float:
    """Return the shards and the peak of a removal as a share of the training state of the process with the most."""
    return max((own + peak) / (_STATE * own) for own, peak in zip(row["shards"], row["peak"], strict=True))


def _of_each(sizes: Sequence[float]) -> str:
    return ", ".join(map(_mib, sizes))


def _mib(size: float) -> str:
    return _number(size / MIB)


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"
