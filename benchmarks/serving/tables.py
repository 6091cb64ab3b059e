"""Tables of the results: Markdown lines, with notes below the table."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks import records

__all__ = ["TABLES", "show"]

Row = dict[str, Any]

_RUNTIMES = ("transformers", "llama.cpp", "ONNX Runtime", "OpenVINO", "vLLM")


def tokens_table(rows: Sequence[Row]) -> list[str]:
    """Show greedy tokens that are the model's own, for each family and runtime; reasons of refusals follow."""
    runtimes = sorted(_names(rows, "runtime"), key=_RUNTIMES.index)
    shown = []
    for family in _names(rows, "family"):
        cells: Row = {"family": family}
        for runtime in runtimes:
            cells[runtime] = _tokens([row for row in rows if (row["family"], row["runtime"]) == (family, runtime)])
        shown.append(cells)
    return [records.markdown(shown, ["family", *runtimes]), *_reasons(rows)]


def cache_table(rows: Sequence[Row]) -> list[str]:
    """Show the share of the dense model's cache, with a row for each pattern of kept groups."""
    runtimes = _names(rows, "runtime")
    cases = dict.fromkeys((row["kept"], row["pattern"]) for row in rows)
    shares = {(row["kept"], row["pattern"], row["runtime"]): row["share"] for row in rows}
    shown = [
        {"kept": f"{kept:.0%}, {pattern}"} | {name: f"{shares[kept, pattern, name]:.2f}" for name in runtimes}
        for kept, pattern in cases
    ]
    return [records.markdown(shown, {"kept": "kept groups", **{name: name for name in runtimes}})]


def encoder_table(rows: Sequence[Row]) -> list[str]:
    """Show accuracy, size and speed-ups of the encoders in each runtime."""
    columns = {
        "model": "removed",
        "runtime": "runtime",
        "validation": "validation",
        "test": "test",
        "size": "MB",
        "over_dense_1x128": "over dense, 1 x 128",
        "over_dense_8x128": "over dense, 8 x 128",
        "over_pytorch_1x128": "over dense PyTorch, 1 x 128",
        "over_pytorch_8x128": "over dense PyTorch, 8 x 128",
    }
    shown = [
        {
            **{name: _spread(row[name]) for name in columns if name.startswith("over_")},
            "model": _removed(row["model"]),
            "runtime": row["runtime"],
            "validation": f"{row['validation']:.2%}",
            "test": f"{row['test']:.2%}",
            "size": _size(row["megabytes"]),
        }
        for row in rows
    ]
    examples = f"{rows[0]['validation_examples']:,} validation and {rows[0]['test_examples']:,} test examples."
    return [records.markdown(shown, columns), "", examples]


def decoder_table(rows: Sequence[Row]) -> list[str]:
    """Show the perplexity and size of the decoders, with a row for each runtime and type."""
    models = _names(rows, "model")
    cases = dict.fromkeys((row["runtime"], row["dtype"]) for row in rows)
    found = {(row["runtime"], row["dtype"], row["model"]): row for row in rows}
    shown = []
    for runtime, dtype in cases:
        cells = {"runtime": runtime, "dtype": dtype}
        for model in models:
            row = found[runtime, dtype, model]
            cells[model] = f"{row['perplexity']:.2f}"
            cells[f"{model} MB"] = _size(row["megabytes"])
        shown.append(cells)
    columns = {"runtime": "runtime", "dtype": "weights"}
    for model in models:
        columns |= {model: _removed(model), f"{model} MB": "MB"}
    return [records.markdown(shown, columns), "", f"Perplexity of the same {rows[0]['tokens']:,} tokens."]


def speed_table(rows: Sequence[Row]) -> list[str]:
    """Show the speed of the decoders in llama.cpp over that of the dense one with weights of the same type."""
    columns = {
        "model": "removed",
        "dtype": "weights",
        "prompting": "prompting",
        "writing": "writing",
        "size": "file / dense file",
    }
    shown = [
        {
            "model": _removed(row["model"]),
            "dtype": row["dtype"],
            "prompting": _spread(row["prompting"]),
            "writing": _spread(row["writing"]),
            "size": f"{row['megabytes'] / row['dense_megabytes']:.2f}",
        }
        for row in rows
    ]
    return [records.markdown(shown, columns)]


TABLES: Mapping[str, Callable[[Sequence[Row]], list[str]]] = {
    "tokens": tokens_table,
    "cache": cache_table,
    "encoder": encoder_table,
    "decoder": decoder_table,
    "speed": speed_table,
}


def show(table: Callable[[Sequence[Row]], list[str]], rows: Sequence[Row]) -> list[str]:
    """Return the lines of a table, after the machines of its results."""
    return [*records.facts(rows), *table(rows)]


def _names(rows: Iterable[Row], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))


def _tokens(rows: Sequence[Row]) -> str:
    """Return the tokens of a family in a runtime: numbers over all patterns, and patterns that are refused."""
    written = [row for row in rows if "tokens" in row]
    equal, total = (sum(row[name] for row in written) for name in ("equal", "tokens"))
    parts = [f"{equal} of {total}"] if written else []
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


def _removed(model: str) -> str:
    return {"dense": "nothing", "heads": "half of the heads"}.get(model, "half of the heads and neurons")


def _spread(values: Sequence[float]) -> str:
    median, low, high = values
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def _size(megabytes: float) -> str:
    return f"{megabytes:.1f}" if megabytes >= 10 else f"{megabytes:.2f}"
