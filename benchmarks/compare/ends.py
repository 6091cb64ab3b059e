"""Table of what follows a search: nothing, a recovery with a new schedule, or the training that goes on."""

import statistics
from collections import defaultdict
from collections.abc import Sequence

from benchmarks import records
from benchmarks.compare.methods import ENDS, METHODS
from benchmarks.compare.outcome import DATA, Row, headline, machines
from benchmarks.compare.paired import difference

_UNITS = {"heads": "heads alone", "both": "heads and neurons"}


def lines(rows: Sequence[Row]) -> list[str]:
    """Return the machines of runs, and a table with a line for each size and end of the search.

    Cells have the change of the test score in points from the first end, paired by seed, or its mean; and the minutes
    of all runs over those of the first end.
    """
    scores: dict[tuple[str, float, str], dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    seconds: dict[tuple[str, float, str], dict[tuple[str, int], float]] = defaultdict(dict)
    for row in rows:
        units, _, end = row["method"].partition("_")
        scores[units, row["asked"], end][row["data"]][row["seed"]] = 100 * headline(row)
        trained = sum(row.get(f"seconds/{phase}", 0.0) for phase in ("search", "recovery"))
        seconds[units, row["asked"], end][row["data"], row["seed"]] = trained
    first, table = next(iter(ENDS)), []
    data = list(dict.fromkeys(row["data"] for row in rows))
    for (units, asked, end), by_data in sorted(scores.items(), key=lambda item: _order(*item[0])):
        base, times = scores[units, asked, first], seconds[units, asked, first]
        shared = times.keys() & seconds[units, asked, end].keys()
        size = METHODS[f"{units}_{end}"].ask
        assert size is not None
        line = {"units": f"{_UNITS[units]}, {size.title.format(asked)}", "end": ENDS[end][1]}
        for name in data:
            change = difference(by_data[name], base[name])
            line[name] = f"{statistics.mean(by_data[name].values()):.2f} %" if end == first else str(change or "-")
        ratio = sum(seconds[units, asked, end][key] for key in shared) / sum(times[key] for key in shared)
        table.append(line | {"time": f"{ratio:.2f}", "seeds": str(max(map(len, by_data.values())))})
    columns = {"units": "kept", "end": "after the search", **{name: DATA.get(name, name) for name in data}}
    return [*machines(rows), "", records.markdown(table, {**columns, "time": "time", "seeds": "seeds"})]


def _order(units: str, asked: float, end: str) -> tuple[bool, float, int]:
    return units != "heads", -asked, list(ENDS).index(end)
