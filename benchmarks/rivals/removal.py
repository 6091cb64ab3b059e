"""One case: every method removes the same heads, and the outputs are compared."""

import copy
import statistics
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn

import gating
from benchmarks.measuring import interleave, ratio
from benchmarks.rivals.cases import Heads, Subject
from benchmarks.rivals.with_torch_pruning import count_heads, prune_by_graph, prune_by_pruner
from gating.proof.outputs import max_relative_difference, tolerance_for

OURS = "head-gating"
Row = dict[str, Any]


class Timing(NamedTuple):
    """Numbers of repetitions of forward passes and removals, and seconds after which a case ends early."""

    rounds: int
    surgeries: int
    budget_s: float = 60
    warm_up: int = 1


METHODS: dict[str, Callable[[nn.Module, Heads, Mapping[str, Tensor], int], object]] = {
    OURS: lambda model, heads, _batch, _head_dim: gating.prune_heads(model, heads),
    "torch-pruning, pruner": prune_by_pruner,
    "torch-pruning, graph": prune_by_graph,
}


@torch.inference_mode()
def logits_of(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return a copy of a model's logits."""
    logits: Tensor = model(**batch).logits.clone()
    return logits


def masked_logits(subject: Subject, heads: Heads) -> Tensor:
    """Return the logits with the gates of the heads closed and all others open."""
    gates = gating.inject_gates(subject.model)
    values = torch.ones(subject.num_layers, subject.num_heads)
    for layer, its_heads in heads.items():
        values[layer, its_heads] = 0
    try:
        with gates.fixed_at(values.flatten()):
            return logits_of(subject.model, subject.batch)
    finally:
        gates.remove()


def compare(subject: Subject, heads: Heads, methods: list[str], timing: Timing) -> list[Row]:
    """Return a row for each method that works in this process."""
    masked = masked_logits(subject, heads)
    # Whether the outputs tell that heads are missing: otherwise equality would prove nothing.
    effect = max_relative_difference([masked], [logits_of(subject.model, subject.batch)])
    rows, compacts = [], {}
    for method in methods:
        compact = copy.deepcopy(subject.model)
        row = {"method": method, "effect_of_mask": effect, **_attempt(compact, METHODS[method], subject, heads, masked)}
        if row["works"]:
            compacts[method] = compact
        rows.append(row)
    surgery = _time_surgery(subject, heads, list(compacts), timing)
    latency = _time_models(subject, compacts, timing)
    reloaded = _save_and_reload(subject, compacts)
    for row in rows:
        if row["method"] in compacts:
            row |= {**surgery[row["method"]], **latency[row["method"]], **reloaded[row["method"]]}
    return rows


def _attempt(model: nn.Module, prune: Callable[..., None], subject: Subject, heads: Heads, masked: Tensor) -> Row:
    """Apply a method to a model and judge the result."""
    row: Row = {"works": False, "heads_asked": sum(map(len, heads.values()))}
    try:
        prune(model, heads, subject.batch, subject.head_dim)
        row["heads"] = subject.num_layers * subject.num_heads - count_heads(model, subject.head_dim)
        row["difference"] = max_relative_difference([masked], [logits_of(model, subject.batch)])
    except Exception as error:  # whatever a method raises is its result
        return {**row, "error": one_line(error)}
    return {**row, **judge(row, masked.dtype)}


def judge(row: Row, dtype: torch.dtype) -> Row:
    """Return whether the right heads are gone: their number, and outputs equal to the masked ones but for rounding."""
    if row["heads"] != row["heads_asked"]:
        return {"works": False, "error": f"removed {row['heads']} heads instead of {row['heads_asked']}, silently"}
    if row["difference"] > tolerance_for(dtype):
        return {"works": False, "error": "outputs are not those of the masked model"}
    return {"works": True}


def _time_surgery(subject: Subject, heads: Heads, methods: list[str], timing: Timing) -> dict[str, Row]:
    """Return the seconds that each removal takes, of new copies of the model that are made before the clock starts."""
    copies: list[nn.Module] = []
    calls = {
        method: lambda prune=METHODS[method]: prune(copies.pop(), heads, subject.batch, subject.head_dim)
        for method in methods
    }
    times = interleave(
        calls,
        rounds=timing.surgeries,
        warm_up=0,
        budget_s=timing.budget_s,
        prepare=lambda: copies.append(copy.deepcopy(subject.model)),
    )
    return {
        method: {"seconds": statistics.median(times[method]), "seconds_vs_ours": _ratio(times, method, OURS)}
        for method in methods
    }


def _time_models(subject: Subject, compacts: dict[str, nn.Module], timing: Timing) -> dict[str, Row]:
    models = {"dense": subject.model, **compacts}
    calls = {name: partial(logits_of, model, subject.batch) for name, model in models.items()}
    times = interleave(calls, rounds=timing.rounds, warm_up=timing.warm_up, budget_s=timing.budget_s)
    return {
        method: {
            "latency_vs_dense": ratio(times, method, "dense"),
            "latency_vs_ours": _ratio(times, method, OURS),
            "rounds": len(times[method]),
        }
        for method in compacts
    }


def _ratio(times: dict[str, list[float]], name: str, base: str) -> tuple[float, float, float] | None:
    """Return the ratio, or None if the reference failed."""
    return ratio(times, name, base) if base in times else None


def _save_and_reload(subject: Subject, compacts: dict[str, nn.Module]) -> dict[str, Row]:
    """Save every model as its makers say, and as transformers saves models, and load it."""
    # Its own class for what transformers knows, the folder's for what carries code of its own.
    auto_class = getattr(transformers, "AutoModelFor" + type(subject.model).__name__.partition("For")[2])
    transformers_way = partial(auto_class.from_pretrained, trust_remote_code=True)
    rows: dict[str, Row] = {}
    for method, model in compacts.items():
        expected = logits_of(model, subject.batch)
        with tempfile.TemporaryDirectory() as folder:
            if method == OURS:
                gating.save_compact(model, f"{folder}/model")
                own_way: Callable[[], nn.Module] = partial(gating.load_compact, f"{folder}/model")
            else:
                model.save_pretrained(f"{folder}/model")
                torch.save(model, f"{folder}/model.pt")
                own_way = partial(torch.load, f"{folder}/model.pt", weights_only=False)
            ways = {"reloads": own_way, "from_pretrained": partial(transformers_way, f"{folder}/model")}
            rows[method] = {name: verdict(expected, _answer(load, subject)) for name, load in ways.items()}
    return rows


def _answer(load: Callable[[], nn.Module], subject: Subject) -> Tensor | str:
    try:
        return logits_of(load().eval(), subject.batch)
    except Exception as error:  # whatever a method raises is its result
        return one_line(error)


def one_line(error: Exception) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]


def verdict(expected: Tensor, answer: Tensor | str) -> str:
    """Return ``yes``, or the fault of a reloaded model."""
    if isinstance(answer, str):
        return answer
    difference = max_relative_difference([expected], [answer])
    return "yes" if difference <= tolerance_for(expected.dtype) else f"other outputs, by {difference:.0e}"
