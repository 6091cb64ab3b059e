"""Removing the same heads from the same model with another library, torch-pruning.

    python -m benchmarks.rivals
    python -m benchmarks.rivals --quick    a small model, to see that it runs; nothing is written

torch-pruning is used in the two ways that its documentation shows (https://github.com/VainF/Torch-Pruning): its pruner,
which is told the heads of every projection and ranks them by an importance, here one that says which are to go; and its
dependency graph. It is installed into ~/.cache/head-gating, not beside this package. The model has the shape of
BERT-base and random weights.

A method works if exactly the named heads are gone and the outputs are those of the masked model.
"""

import argparse
import copy
import importlib
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

import gating
from benchmarks import records
from benchmarks.measuring import RESULTS, machine
from gating.proof.outputs import max_relative_difference, tolerance_for

Row = dict[str, Any]
Heads = dict[int, list[int]]

OURS = "head-gating"
OUTPUT = RESULTS / "rivals.jsonl"
TORCH_PRUNING = "torch-pruning==1.6.1"
CACHE = Path.home() / ".cache" / "head-gating" / TORCH_PRUNING
_SMALL = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 128}
# Makes attention matter in the outputs: with 0.02, all heads of a random model together change the third digit.
_STD = 0.05
# Name -> how many heads each layer loses, from the number of layers and of heads in a layer.
CASES: dict[str, Callable[[int, int], list[int]]] = {
    "half of every layer": lambda layers, heads: [heads // 2] * layers,
    "uneven": lambda layers, heads: [1 + 2 * layer % (heads - 1) for layer in range(layers)],
    "one layer emptied": lambda layers, heads: [
        heads if layer == layers // 2 else heads // 2 for layer in range(layers)
    ],
    "an eighth left": lambda layers, heads: [heads - 1 - layer % 2 for layer in range(layers)],
}


class Subject(NamedTuple):
    """A model in evaluation mode, and a batch for it."""

    model: Any
    batch: dict[str, Tensor]

    @property
    def shape(self) -> tuple[int, int]:
        """Number of layers, and of heads in a layer."""
        return self.model.config.num_hidden_layers, self.model.config.num_attention_heads


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the results in the place of all before, and print them as a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rivals", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small model; nothing is written")
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not (CACHE / "torch_pruning").is_dir():
        command = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(CACHE), TORCH_PRUNING]
        subprocess.run([sys.executable, *command], check=True)
    sys.path.append(str(CACHE))
    importlib.invalidate_caches()
    rows, subject = [], _subject(small=options.quick)
    for case in CASES:
        heads = heads_to_remove(case, subject)
        for method in METHODS:
            rows.append({"case": case, "method": method, **attempt(method, subject, heads), **machine()})
            print(case, method, rows[-1].get("error", "works"), sep=", ", file=sys.stderr)
    if not options.quick:
        records.write(OUTPUT, rows)
    print("\n".join(table(rows)))


def table(rows: Sequence[Row]) -> list[str]:
    """Return a line for each method: what it does in each case, the time of a removal, and whether its model loads."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        works = [row for row in own if row["works"]]
        seconds = [row["seconds"] for row in works]
        cases = {row["case"]: row.get("error", "exact") for row in own}
        loads = "yes" if all(row["from_pretrained"] == "yes" for row in works) else "no"
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        lines.append({"": method, **cases, "seconds": spread, "loads by from_pretrained": loads})
    return [*records.machines(rows), records.markdown(lines)]


def heads_to_remove(case: str, subject: Subject) -> Heads:
    """Draw the heads that a case removes; the same at every call."""
    generator, (layers, heads) = random.Random(0), subject.shape
    counts = CASES[case](layers, heads)
    return {layer: sorted(generator.sample(range(heads), count)) for layer, count in enumerate(counts)}


def attempt(method: str, subject: Subject, heads: Heads) -> Row:
    """Let a method remove heads from a copy of the model, and judge the result."""
    model, asked = copy.deepcopy(subject.model), sum(map(len, heads.values()))
    masked = masked_logits(subject, heads)
    start = time.perf_counter()
    try:
        METHODS[method](model, heads, subject.batch)
        row: Row = {"works": False, "seconds": time.perf_counter() - start}
        logits = _logits(model, subject.batch)
    except Exception as error:  # whatever a method raises is its result
        return {"works": False, "error": _one_line(error)}
    layers, per_layer = subject.shape
    gone = layers * per_layer - _count_heads(model, subject.model.config.hidden_size // per_layer)
    row["difference"] = max_relative_difference([masked], [logits])
    if gone != asked:
        return {**row, "error": f"removed {gone} heads instead of {asked}, silently"}
    if row["difference"] > tolerance_for(masked.dtype):
        return {**row, "error": "outputs are not those of the masked model"}
    return {**row, "works": True, "from_pretrained": _reloaded(method, model, subject)}


def masked_logits(subject: Subject, heads: Heads) -> Tensor:
    """Return the logits with the gates of the heads closed and all others open."""
    gates = gating.inject_gates(subject.model)
    values = torch.ones(subject.shape)
    for layer, its_heads in heads.items():
        values[layer, its_heads] = 0
    try:
        with gates.fixed_at(values.flatten()):
            return _logits(subject.model, subject.batch)
    finally:
        gates.remove()


def _subject(*, small: bool) -> Subject:
    torch.manual_seed(0)
    config = BertConfig(**{**(_SMALL if small else {}), "initializer_range": _STD})
    tokens = torch.randint(1, config.vocab_size, (8, 128))
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return Subject(BertForSequenceClassification(config).eval(), batch)


@torch.inference_mode()
def _logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    logits: Tensor = model(**batch).logits.clone()
    return logits


def _reloaded(method: str, model: Any, subject: Subject) -> str:
    """Save a model and load it with transformers; return ``yes`` or the fault."""
    with tempfile.TemporaryDirectory() as folder:
        gating.save_compact(model, folder, overwrite=True) if method == OURS else model.save_pretrained(folder)
        try:
            loaded = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
            difference = max_relative_difference([_logits(model, subject.batch)], [_logits(loaded, subject.batch)])
        except Exception as error:  # whatever a method raises is its result
            return _one_line(error)
    return "yes" if difference <= tolerance_for(torch.float32) else f"other outputs, by {difference:.0e}"


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]


def _attentions(model: Any) -> list[Any]:
    return [layer.attention.self for layer in model.bert.encoder.layer]


def _count_heads(model: nn.Module, head_dim: int) -> int:
    """Count the heads that the query projections have rows for; an emptied layer of ours has none."""
    queries = [attention.query for attention in _attentions(model)]
    return sum(query.out_features // head_dim for query in queries if query is not None)


def _by_graph(model: nn.Module, heads: Heads, batch: Mapping[str, Tensor]) -> None:
    """Remove the heads' rows from each query projection; the graph finds the dependent layers."""
    import torch_pruning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        graph = torch_pruning.DependencyGraph()
        graph.build_dependency(model, _example(batch), output_transform=lambda outputs: outputs.logits.sum())
    head_dim = model.config.hidden_size // model.config.num_attention_heads
    for layer, attention in enumerate(_attentions(model)):
        rows = [head * head_dim + row for head in heads[layer] for row in range(head_dim)]
        # Without check_pruning_group, which forbids to remove all rows of a layer.
        graph.get_pruning_group(attention.query, torch_pruning.prune_linear_out_channels, rows).prune()


def _by_pruner(model: nn.Module, heads: Heads, batch: Mapping[str, Tensor]) -> None:
    """Let ``BasePruner`` remove as many heads as are named, with an importance that ranks them lowest."""
    import torch_pruning

    heads_of = {each: each.num_attention_heads for each in _attentions(model)}
    projections = {one: num for each, num in heads_of.items() for one in (each.query, each.key, each.value)}
    total = sum(projections.values()) // 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        pruner = torch_pruning.pruner.BasePruner(
            model,
            _example(batch),
            importance=_importance(model, heads),
            global_pruning=True,
            # With 0 it prunes nothing at all, heads neither.
            pruning_ratio=0.5,
            # Only heads shall go.
            ignored_layers=[m for m in model.modules() if not list(m.children()) and m not in projections],
            num_heads=projections,
            prune_num_heads=True,
            prune_head_dims=False,
            # Half a head less, because the pruner rounds (1 - ratio) * total down.
            head_pruning_ratio=(sum(map(len, heads.values())) - 0.5) / total,
            output_transform=lambda outputs: outputs.logits.sum(),
            # The defaults are dictionaries that all pruners of a process share.
            in_channel_groups={},
            out_channel_groups={},
        )
        for group in pruner.step(interactive=True):
            group.prune()


def _importance(model: nn.Module, heads: Heads) -> Callable[[Any], Tensor | None]:
    """Return an importance of 0 for the channels of some heads and 1 for all others."""
    head_dim = model.config.hidden_size // model.config.num_attention_heads
    scores: dict[Any, Tensor] = {}
    for layer, attention in enumerate(_attentions(model)):
        score = torch.ones(attention.num_attention_heads)
        score[heads[layer]] = 0
        scores[attention.query] = score.repeat_interleave(head_dim)
    return lambda group: next((scores[each.target.module] for each, _ in group if each.target.module in scores), None)


def _example(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the first example alone, as small an input to trace as those of the project's examples."""
    return {name: tensor[:1] for name, tensor in batch.items()}


METHODS: dict[str, Callable[[Any, Heads, Mapping[str, Tensor]], object]] = {
    OURS: lambda model, heads, _: gating.prune_heads(model, heads),
    "torch-pruning, pruner": _by_pruner,
    "torch-pruning, graph": _by_graph,
}


if __name__ == "__main__":
    main()
