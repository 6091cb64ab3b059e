"""Results as JSON lines, and as a Markdown table."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def append(path: Path, row: Row) -> None:
    """Write one result at the end of a file, which is made if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write results in the place of all in a file, which changes at once."""
    new = path.with_suffix(".new")
    new.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    new.replace(path)


def replace(path: Path, row: Row, key: Callable[[Row], object]) -> None:
    """Write a result in the place of the one with the same key, at the end of a file."""
    write(path, [*(other for other in read(path) if key(other) != key(row)), row])


def read(path: Path) -> list[dict[str, Any]]:
    """Return all results of a file; none if there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def machines(rows: Iterable[Row]) -> list[str]:
    """Return the machines of results, which have the facts of ``measuring.machine`` or of a run: lines, one empty."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        torch, transformers = (row.get(name) or row[f"version/{name}"] for name in ("torch", "transformers"))
        versions = f"torch {torch}, transformers {transformers}."
        shown = f"{row['cores']} cores, {row['threads']} thread(s), {versions}"
        found.setdefault(shown, {})[row["gpu"] or row["cpu"]] = None
    return [*(f"{' or '.join(sorted(names))}, {shown}" for shown, names in sorted(found.items())), ""]


def markdown(rows: Iterable[Row], columns: Iterable[str] | Mapping[str, str] = ()) -> str:
    """Return a Markdown table.

    Args:
        rows: The results.
        columns: Names of the values to show, by default all of the first row; a mapping gives each a heading.
    """
    rows = list(rows)
    headings = columns if isinstance(columns, Mapping) else {name: name for name in columns or rows[0]}
    lines = [f"| {' | '.join(headings.values())} |", "|" + "---|" * len(headings)]
    lines += [f"| {' | '.join(_cell(row.get(name)) for name in headings)} |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    """Write a value: numbers with three digits, a list of three as a median and its quartiles."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)) and len(value) == 3 and all(isinstance(item, float) for item in value):
        median, low, high = map(_cell, value)
        return f"{median} ({low}-{high})"
    return str(value).replace("|", "\\|").replace("\n", " ")
