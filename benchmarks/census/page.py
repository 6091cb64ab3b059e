"""The page docs/coverage.md, from the results of the census."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks import records
from benchmarks.measuring import ROOT

__all__ = ["groups_of", "write_page"]

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
        return {"refused": _REFUSED, "wrong": _WRONG, "unproven": _UNPROVEN}.get(row["outcome"], row["outcome"])
    is_found, is_whole = row["by"] == "discovery", not row["ungated"] and not row["unproven"]
    return {
        (False, True): _EXACT,
        (False, False): _PARTLY,
        (True, True): _DISCOVERED,
        (True, False): _PARTLY_DISCOVERED,
    }[is_found, is_whole]


def write_page(rows: Sequence[Row], *, tolerance: float) -> None:
    """Write the page from results, of which exact ones differ by at most the tolerance."""
    groups = groups_of(sorted(rows, key=lambda row: row["model_type"]))
    first = rows[0]
    lines = [
        _INTRODUCTION.format(tolerance=f"{tolerance:.0e}"),
        f"transformers {first['transformers']}, torch {first['torch']}, float32 on a CPU.\n",
        *_counts(groups),
        "## Exact\n",
        f"By the registry: {_names(groups.get(_EXACT, []))}.\n",
        f"With `discover=True`: {_names(groups.get(_DISCOVERED, []))}.\n",
        _uneven([row for row in rows if row["outcome"] == "exact"]),
        "## Exact in part\n",
        "The heads of the other modules stay. Modules without gates are named by `find_attention_blocks`, by "
        "`inject_gates` and in the first lines of a run, unproven ones by `finalize`.\n",
        _rest_table([*groups.get(_PARTLY, []), *groups.get(_PARTLY_DISCOVERED, [])]),
        "\n## Unproven\n",
        "What is removed has too little effect on what these tiny models return, or the batch does not reach it: "
        f"{_names(groups.get(_UNPROVEN, []))}.\n",
        "## Neurons\n",
        *_neurons([row for row in rows if "neurons_outcome" in row]),
        "\n## Refused\n",
        _by_reason(groups.get(_REFUSED, []), _short_refusal),
        *(["\n## Wrong\n", _by_reason(groups[_WRONG], _plain)] if _WRONG in groups else []),
        "\n## Not examined\n",
        f"Without attention: {_names(groups.get('no attention', []))}.\n",
        "Tiny models that cannot be built from a configuration whose sizes are reduced by name, or that run on none of "
        "the batches made for them (pass `probe=` for such models):\n",
        _by_reason([*groups.get("not built", []), *groups.get("not run", [])], _short_problem),
        f"\n{_END}",
    ]
    PAGE.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _counts(groups: Mapping[str, Sequence[Row]]) -> list[str]:
    total = sum(len(groups.get(name, ())) for name in _COUNTED)
    rows = [
        {"outcome": name, "model types": len(groups.get(name, ())), "share": f"{len(groups.get(name, ())) / total:.0%}"}
        for name in _COUNTED
    ]
    others = ", ".join(
        f"{len(groups.get(name, ()))} {label}"
        for name, label in (
            ("no attention", "have no attention"),
            ("not built", "cannot be built"),
            ("not run", "do not run"),
        )
    )
    return [records.markdown(rows, ["outcome", "model types", "share"]), f"\nOf the other model types, {others}.\n"]


def _names(rows: Sequence[Row]) -> str:
    return ", ".join(f"`{row['model_type']}`" for row in rows) or "none"


def _uneven(rows: Sequence[Row]) -> str:
    """Return what the second sizes show of the types that are exact with the first."""
    both = [row for row in rows if row["uneven"]["outcome"] == "exact"]
    others = [f"`{row['model_type']}` ({row['uneven']['outcome']})" for row in rows if row not in both]
    return f"With both sets of sizes: {len(both)} of {len(rows)}. The others: {', '.join(others) or 'none'}.\n"


def _rest_table(rows: Sequence[Row], prefix: str = "") -> str:
    """Return a table of the modules that have no gates, and of those that the batch proves nothing for, by type."""
    column = "without gates, or unproven"
    return records.markdown(
        [{"type": f"`{row['model_type']}`", column: _rest(row, prefix)} for row in rows], ["type", column]
    )


def _rest(row: Row, prefix: str) -> str:
    ungated = [f"{one['number']} {one['class']}: {_shorten(one['reason'])}" for one in row[f"{prefix}ungated"]]
    unproven = [f"{number} {name}: unproven" for name, number in row[f"{prefix}unproven"].items()]
    return "; ".join([*ungated, *unproven])


def _neurons(rows: Sequence[Row]) -> list[str]:
    """Return the counts of types by what becomes of their neurons, and those where some stay."""
    exact = [row for row in rows if row["neurons_outcome"] == "exact"]
    partly = [row for row in exact if row["neurons_ungated"] or row["neurons_unproven"]]
    others = [row for row in rows if row not in exact]
    return [
        f"Of the {len(rows)} types whose heads are exact, the neurons of {len(exact) - len(partly)} are exact as well, "
        f"of {len(partly)} in part, of {len(others)} not at all.\n",
        _rest_table(partly, "neurons_"),
        "",
        _by_reason(others, _short_neurons),
    ]


def _by_reason(rows: Sequence[Row], shorten: Callable[[Row], str]) -> str:
    """Return a table of reasons, the most frequent first, with their model types."""
    reasons = {row["model_type"]: shorten(row) for row in rows}
    counts = Counter(reasons.values())
    return records.markdown(
        [
            {"reason": reason, "types": ", ".join(f"`{name}`" for name, its in reasons.items() if its == reason)}
            for reason, _ in counts.most_common()
        ],
        ["reason", "types"],
    )


def _short_neurons(row: Row) -> str:
    return _shorten(re.sub(r"Neurons cannot be removed from .*?\(\w+\)[:,] ", "", str(row["neurons_reason"])))


def _plain(row: Row) -> str:
    return str(row["reason"])


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
