"""Table of what follows a search: nothing, a recovery with a new schedule, or the training that goes on."""

import statistics
from collections.abc import Sequence

from benchmarks import records
from benchmarks.compare.methods import ENDS, METHODS
from benchmarks.compare.outcome import DATA, Row, group_rows, scores_of, sets_of
from benchmarks.compare.paired import differences, show_mean

_UNITS = {"heads": "heads alone", "both": "heads and neurons"}


def lines(rows: Sequence[Row]) -> list[str]:
    """Return the machines of runs, and a table with a line for each size and end of the search.

    The first end has the mean test score; the others have the change from it in points, paired by seed, with its
    standard error, and the number of seeds in brackets.
    """
    sets = {data: group_rows(rows, data, steps) for data, steps in sets_of(rows)}
    first, table = next(iter(ENDS)), []
    for method, asked in sorted({(row["method"], row["asked"]) for row in rows}, key=_order):
        units, _, end = method.partition("_")
        ask = METHODS[method].ask
        assert ask is not None
        shares = [row["search_steps"] / row["steps"] for groups in sets.values() for row in groups[method, asked]]
        line = {"units": f"{_UNITS[units]}, {ask.title.format(asked)}", "end": ENDS[end][1]}
        line["share"] = f"{statistics.mean(shares):.0%}"
        for data, groups in sets.items():
            own, base = (scores_of(groups[name, asked]) for name in (method, f"{units}_{first}"))
            if end == first and own:
                line[data] = f"{statistics.mean(own.values()):.2f} % ({len(own)})"
            elif changes := differences(own, base):
                line[data] = f"{show_mean(changes)} ({len(changes)})"
        table.append(line)
    columns = {"units": "kept", "end": "after the search", "share": "steps of the search"}
    return [*records.machines(rows), records.markdown(table, columns | {data: DATA.get(data, data) for data in sets})]


def _order(size: tuple[str, float]) -> tuple[bool, float, int]:
    units, _, end = size[0].partition("_")
    return units != "heads", -size[1], list(ENDS).index(end)
