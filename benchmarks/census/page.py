"""The page docs/coverage.md, from the results of the census."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks import records
from benchmarks.census import compensation
from benchmarks.census.removal import EXACT
from benchmarks.measuring import ROOT

PAGE = ROOT / "docs" / "coverage.md"
Row = Mapping[str, Any]

_EXACT, _PARTLY = "exact by the registry", "exact in part by the registry"
_DISCOVERED, _PARTLY_DISCOVERED = "exact with `discover=True`", "exact in part with `discover=True`"
_UNPROVEN, _REFUSED, _WRONG = "unproven", "refused with a reason", "wrong"
_COUNTED = (_EXACT, _DISCOVERED, _PARTLY, _PARTLY_DISCOVERED, _UNPROVEN, _REFUSED, _WRONG)
_INTRODUCTION = """\
# Coverage

Every model type of transformers that a tiny configuration can build, with random parameters: heads of random, uneven
patterns are removed, with an emptied block among them, and outputs and generated tokens are compared with those of the
model with the same heads masked; feed-forward neurons likewise; and a compact model without heads and neurons is saved
and loaded in a fresh process, by transformers alone. *Exact* is a largest relative difference of {tolerance} or less,
where masking all units of a block changes the outputs by more than ten times that: a block that does not is *unproven*.
Each type is built with two sets of sizes; with the second, the rows of some heads or neurons do not divide by the
number of heads or by each other. For the families that the tests assert all of this for, see
[Model families](families.md).
"""
_LEGEND = """\
## Every model type

On the documentation site (`make docs-serve`), the field above the table filters its
lines; elsewhere, search this page for the `model_type` of your configuration. *In part*: the heads of the named modules
stay. `find_attention_blocks`, `inject_gates` and the first lines of a run name modules without gates, `finalize` names
unproven ones. Models that do not run here have no batch that could be made for them: pass `probe=`.
"""
_END = """\
## How this is measured

    python -m benchmarks.census

examines the model types that have no result yet with the installed version of transformers, writes
`benchmarks/results/census.jsonl`, one line for each type, and this page. After an update of transformers, it examines
all again and prints the types whose outcome has changed. `python -m benchmarks.census --only bert qwen2_vl` examines
some types and prints what was measured. The tests examine a sample of types in the same way.
"""


def groups_of(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return results by their group on the page."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_group_of(row), []).append(row)
    return groups


def _group_of(row: Row) -> str:
    if row["outcome"] != "exact":
        return {"refused": _REFUSED}.get(row["outcome"], str(row["outcome"]))
    is_whole = not row["ungated"] and not row["unproven"]
    if row["by"] == "discovery":
        return _DISCOVERED if is_whole else _PARTLY_DISCOVERED
    return _EXACT if is_whole else _PARTLY


def coverage(rows: Sequence[Row]) -> str:
    """Return the page of results."""
    groups, first = groups_of(rows), rows[0]
    lines = [
        _INTRODUCTION.format(tolerance=f"{EXACT:.0e}"),
        f"transformers {first['transformers']}, torch {first['torch']}, float32 on a CPU.\n",
        *_counts(groups),
        *_further_counts([row for row in rows if row["outcome"] == "exact"]),
        f"{compensation.counts(records.read(compensation.OUTPUT))}\n",
        _LEGEND,
        records.markdown(
            [_line(row) for row in sorted(rows, key=lambda row: str(row["model_type"]))],
            ["model type", "heads", "neurons", "what stays, or why"],
        ),
        f"\n{_END}",
    ]
    return "\n".join(lines).rstrip() + "\n"


def _counts(groups: Mapping[str, Sequence[Row]]) -> list[str]:
    counts = Counter({name: len(rows) for name, rows in groups.items()})
    total = sum(counts[name] for name in _COUNTED)
    rows = [{"outcome": name, "model types": counts[name], "share": f"{counts[name] / total:.0%}"} for name in _COUNTED]
    labels = {"no attention": "have no attention", "not built": "cannot be built", "not run": "do not run"}
    others = ", ".join(f"{counts[name]} {label}" for name, label in labels.items())
    return [records.markdown(rows, ["outcome", "model types", "share"]), f"\nOf the other model types, {others}.\n"]


def _further_counts(exact: Sequence[Row]) -> list[str]:
    """Return what else was found of the types whose heads are exact: other sizes, and neurons."""
    uneven = sum(row["uneven"]["outcome"] == "exact" for row in exact)
    outcomes = Counter(_neurons(row) for row in exact)
    return [
        f"Of the {len(exact)} types whose heads are exact, {uneven} are exact with both sets of sizes; the neurons of "
        f"{outcomes['exact']} are exact as well, of {outcomes['in part']} in part, of {outcomes['none']} not at all.\n"
    ]


def _line(row: Row) -> dict[str, str]:
    """Return the line of a model type in the table."""
    return {
        "model type": f"`{row['model_type']}`",
        "heads": _heads(row) if row["outcome"] == "exact" else str(row["outcome"]),
        "neurons": _neurons(row),
        "what stays, or why": "; ".join(_remarks(row)),
    }


def _heads(row: Row) -> str:
    is_whole = not row["ungated"] and not row["unproven"]
    return ("exact" if is_whole else "in part") + (", `discover=True`" if row["by"] == "discovery" else "")


def _neurons(row: Row) -> str:
    if "neurons_outcome" not in row:
        return "-"
    if row["neurons_outcome"] != "exact":
        return "none"
    return "in part" if row["neurons_ungated"] or row["neurons_unproven"] else "exact"


def _remarks(row: Row) -> list[str]:
    """Return the modules of a type that keep their units, with reasons, or the reason that all do."""
    if row["outcome"] == "no attention":
        return []
    if row["outcome"] == "unproven":
        return ["what is removed has too little effect on what this tiny model returns, or no batch reaches it"]
    if row["outcome"] != "exact":
        reasons = {"refused": _short_refusal, "wrong": lambda row: str(row["reason"])}
        return [reasons.get(row["outcome"], _short_problem)(row)]
    remarks = [f"heads: {rest}" for rest in _rest(row, "")] + [f"neurons: {rest}" for rest in _rest(row, "neurons_")]
    if _neurons(row) == "none":
        remarks.append(f"neurons: {_short_neurons(row)}")
    if row["uneven"]["outcome"] != "exact":
        remarks.append(f"with the second set of sizes: {row['uneven']['outcome']}")
    return remarks


def _rest(row: Row, prefix: str) -> list[str]:
    ungated = [f"{one['number']} {one['class']}, {_shorten(one['reason'])}" for one in row.get(f"{prefix}ungated", ())]
    unproven = [f"{number} {name}, unproven" for name, number in row.get(f"{prefix}unproven", {}).items()]
    return [*ungated, *unproven]


def _short_neurons(row: Row) -> str:
    return _shorten(re.sub(r"Neurons cannot be removed from .*?\(\w+\)[:,] ", "", str(row["neurons_reason"])))


def _short_refusal(row: Row) -> str:
    """Return the reason of a refusal without the names of the model and its modules."""
    reason = str(row["reason"])
    inside = re.fullmatch(r"Heads cannot be removed from \w+: in [^(]* \((\w+)\): (.*)", reason)
    if inside:
        return _shorten(inside.group(2))
    return _shorten(reason.replace(row["model_class"], "the model"))


def _short_problem(row: Row) -> str:
    reason = re.sub(r": pass probe=.*", "", str(row["reason"])).replace(row["model_class"], "the model")
    if missing := re.search(r"requires? the (\w+) library", reason):
        return f"needs {missing.group(1)}, which is not installed"
    if "its settings have other names" in reason:
        return "too large: its settings have other names than those that are reduced"
    if reason.startswith("the model does not run on") or "takes" in reason:
        return _shorten(re.sub(r"\(.*", "", reason).strip())
    return _shorten(reason)


def _shorten(reason: str) -> str:
    """Return a reason without the ends that differ from model to model."""
    reason = re.sub(
        r"Without its removed heads, \w+ differs|without its removed heads, \w+ differs", "it differs", reason
    )
    reason = re.sub(r" \(\w*Error: .*|: outputs differ by \S+ .*|: it does not run.*", "", reason)
    return reason if len(reason) <= 220 else f"{reason[:217]}..."
