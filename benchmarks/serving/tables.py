"""Tables of the results: Markdown lines, with notes below the table."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks import records

__all__ = ["cache_table", "encoder_table", "tokens_table"]

Row = dict[str, Any]

_RUNTIMES = ("transformers", "llama.cpp", "ONNX Runtime", "OpenVINO", "vLLM")


def tokens_table(rows: Sequence[Row]) -> list[str]:
    """Show greedy tokens that are the model's own, for each family and runtime; reasons of refusals follow."""
    runtimes = sorted(_names(rows, "runtime"), key=_RUNTIMES.index)
    families: dict[tuple[str, ...], list[str]] = {}
    for family in _names(rows, "family"):
        own = [[row for row in rows if (row["family"], row["runtime"]) == (family, name)] for name in runtimes]
        families.setdefault(tuple(map(_tokens, own)), []).append(family)
    shown = [
        {"family": ", ".join(names), **dict(zip(runtimes, cells, strict=True))} for cells, names in families.items()
    ]
    return [*records.machines(rows), records.markdown(shown, ["family", *runtimes]), *_reasons(rows)]


def cache_table(rows: Sequence[Row]) -> list[str]:
    """Show the share of the dense model's cache, with a row for each pattern of kept groups."""
    runtimes = _names(rows, "runtime")
    cases = dict.fromkeys((row["kept"], row["pattern"]) for row in rows)
    shares = {(row["kept"], row["pattern"], row["runtime"]): row["share"] for row in rows}
    shown = [
        {"kept": f"{kept:.0%}, {pattern}"} | {name: f"{shares[kept, pattern, name]:.2f}" for name in runtimes}
        for kept, pattern in cases
    ]
    return [
        *records.machines(rows),
        records.markdown(shown, {"kept": "kept groups", **{name: name for name in runtimes}}),
    ]


def encoder_table(rows: Sequence[Row]) -> list[str]:
    """Show the speed-up over the dense model in PyTorch, and the test accuracy, of each runtime and model."""
    lines: dict[str, Row] = {}
    for row in rows:
        cell = f"{row['over_pytorch_8x128'][0]:.2f}x, {row['test']:.1%}, {row['megabytes']:.0f} MB"
        lines.setdefault(row["runtime"], {"runtime": row["runtime"]})[row["model"]] = cell
    columns = {"runtime": "runtime", "dense": "nothing removed"}
    columns |= {name: f"half of the {name}" for name in _names(rows, "model") if name != "dense"}
    return [
        *records.machines(rows),
        records.markdown(lines.values(), columns),
        "",
        f"{rows[0]['test_examples']:,} test examples.",
    ]


def _names(rows: Iterable[Row], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))


def _tokens(rows: Sequence[Row]) -> str:
    """Return the share of a family's tokens in a runtime that are right, and patterns that are refused."""
    written = [row for row in rows if "tokens" in row]
    equal, total = (sum(row[name] for row in written) for name in ("equal", "tokens"))
    parts = [f"all of {total}" if equal == total else f"{equal} of {total}"] if written else []
    for outcome in ("refused", "failed"):
        patterns = [row["pattern"] for row in rows if outcome in row]
        if patterns:
            parts.append(outcome if len(patterns) == len(rows) else f"{outcome}: {', '.join(patterns)}")
    return "; ".join(parts) or "-"


def _reasons(rows: Sequence[Row]) -> list[str]:
    """Return a line for each reason of refusals and failures, with its runtime and families."""
    families: dict[tuple[str, str], list[str]] = {}
    # Reasons that differ in the number of a layer are one.
    first: dict[tuple[str, str], str] = {}
    for row in rows:
        reason = row.get("refused") or row.get("failed")
        if reason:
            # The class of the model is the first word, and the remedy another sentence.
            sentence = reason.partition(". ")[0].partition(" ")[2] if "refused" in row else reason
            key = (row["runtime"], re.sub(r"\d+", "", sentence))
            families.setdefault(key, []).append(row["family"])
            first.setdefault(key, sentence)
    lines = [
        f"- {key[0]}, {', '.join(dict.fromkeys(names))}: {first[key].rstrip('.')}." for key, names in families.items()
    ]
    return ["", *lines] if lines else []
