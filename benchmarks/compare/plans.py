"""Table of the plans of a run: what it does with its steps, at equal steps in all."""

import statistics
from collections.abc import Sequence

from benchmarks import records
from benchmarks.compare.methods import METHODS, PLANS
from benchmarks.compare.outcome import DATA, Row, group_rows, scores_of, sets_of
from benchmarks.compare.paired import differences, show_mean

_UNITS = {"heads": "heads alone", "both": "heads and neurons"}


def lines(rows: Sequence[Row]) -> list[str]:
    """Return the machines of runs, and a table with a line for each size and plan.

    The dense line has the mean test scores; the others have the change from it in points, paired by seed, with its
    standard error, and the number of seeds in brackets. Times are those of whole runs over dense ones of the day.
    """
    sets = {data: group_rows(rows, data, steps) for data, steps in sets_of(rows)}
    dense = {data: groups["none", None] for data, groups in sets.items()}
    table: list[dict[str, object]] = [{"plan": "dense"}]
    for data, own in dense.items():
        table[0][data] = f"{statistics.mean(scores_of(own).values()):.2f} % ({len(own)})" if own else None
    for method, asked in sorted({(row["method"], row["asked"]) for row in rows} - {("none", None)}, key=_order):
        units, _, name = method.partition("_")
        ask = METHODS[method].ask
        assert ask is not None
        line: dict[str, object] = {"units": f"{_UNITS[units]}, {ask.title.format(asked)}", "plan": PLANS[name][1]}
        ratios = []
        for data, groups in sets.items():
            own = groups[method, asked]
            changes = differences(scores_of(own), scores_of(dense[data]))
            line[data] = f"{show_mean(changes)} ({len(changes)})" if changes else None
            # Another day, other things ran beside them.
            whole = {(row["seed"], row["date"][:10]): _seconds(row) for row in dense[data]}
            ratios += [_seconds(row) / whole[at] for row in own if (at := (row["seed"], row["date"][:10])) in whole]
        line["time"] = f"{statistics.mean(ratios):.2f}x" if ratios else None
        table.append(line)
    columns = {"units": "kept", "plan": "plan"} | {data: DATA.get(data, data) for data in sets} | {"time": "time"}
    return [*records.machines(rows), records.markdown(table, columns)]


def _seconds(row: Row) -> float:
    """Return the seconds of a run but for its timings and evaluations, which depend on the sizes of the splits."""
    left_out = ("seconds/latency", "seconds/evaluate")
    return sum(value for name, value in row.items() if name.startswith("seconds/") and name not in left_out)


def _order(size: tuple[str, float]) -> tuple[bool, float, int]:
    units, _, name = size[0].partition("_")
    return units != "heads", -size[1], list(PLANS).index(name)
