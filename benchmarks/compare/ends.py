"""Table of what follows a search: nothing, a recovery with a new schedule, or the training that goes on."""

import statistics
from collections import defaultdict
from collections.abc import Sequence

from benchmarks import records
from benchmarks.compare.methods import ENDS, METHODS
from benchmarks.compare.outcome import DATA, Row, scores_of
from benchmarks.compare.paired import difference

_UNITS = {"heads": "heads alone", "both": "heads and neurons"}


def lines(rows: Sequence[Row]) -> list[str]:
    """Return the machines of runs, and a table with a line for each size and end of the search.

    The first end has the mean test score; the others have the change from it in points, paired by seed, with its
    standard error, and the number of seeds in brackets.
    """
    groups: dict[tuple[str, float, str], list[Row]] = defaultdict(list)
    for row in rows:
        units, _, end = row["method"].partition("_")
        groups[units, row["asked"], end].append(row)
    first, data, table = next(iter(ENDS)), list(dict.fromkeys(row["data"] for row in rows)), []
    for (units, asked, end), runs in sorted(groups.items(), key=lambda item: _order(*item[0])):
        ask = METHODS[f"{units}_{end}"].ask
        assert ask is not None
        line = {"units": f"{_UNITS[units]}, {ask.title.format(asked)}", "end": ENDS[end][1]}
        line["share"] = f"{statistics.mean(row['search_steps'] / row['steps'] for row in runs):.0%}"
        for name in data:
            both = (runs, groups[units, asked, first])
            own, base = (scores_of([row for row in some if row["data"] == name]) for some in both)
            if end == first and own:
                line[name] = f"{statistics.mean(own.values()):.2f} % ({len(own)})"
            elif change := difference(own, base):
                line[name] = f"{change} ({len(change.values)})"
        table.append(line)
    columns = {"units": "kept", "end": "after the search", "share": "steps of the search"}
    return [*records.machines(rows), records.markdown(table, columns | {name: DATA.get(name, name) for name in data})]


def _order(units: str, asked: float, end: str) -> tuple[bool, float, int]:
    return units != "heads", -asked, list(ENDS).index(end)
