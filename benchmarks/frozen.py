"""Gates on frozen weights beside one ranking of the dense model: the perplexity of a decoder at shares of its cost.

    python -m benchmarks.frozen --model FOLDER_OR_HUB_NAME --data OUT

OUT is that of `python -m benchmarks.data OUT`. No weight is trained: ``one-shot`` ranks all heads and groups of
neurons by the Fisher information of their gates (Kwon et al. 2022, without its other steps), ``importance`` by their
sensitivity in each layer (Michel et al. 2019), both on a few batches; ``sampled`` and ``deterministic`` train gates
with the model itself as their teacher. Each method then removes its closed units, and the compact model is evaluated.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, logging

import gating
from benchmarks import records
from benchmarks.measuring import RESULTS, machine
from gating.teachers.teacher import OpenTeacher

OUTPUT = RESULTS / "frozen.jsonl"
COLUMNS = ("method", "keep", "group_size", "steps", "perplexity", "heads", "groups", "seconds", "seconds_per_step")
# Blocks of a step and tokens of each, and blocks of the test.
BATCH, LENGTH, TEST_BLOCKS = 4, 128, 24
ONE_ROUND = gating.BudgetSchedule(start=0.0, end=1.0)


def main(arguments: list[str] | None = None) -> None:
    """Measure, append the results to a file and print them as a table."""
    options = parse(arguments)
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    rows = []
    for row in measure(options):
        rows.append({**row, "model": Path(options.model).name, "precision": options.precision, **machine()})
        records.append(options.output, rows[-1])
        print({name: row.get(name) for name in COLUMNS}, file=sys.stderr)
    print(records.markdown(rows, COLUMNS))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frozen", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="folder or hub name of a decoder with its tokenizer")
    parser.add_argument("--data", type=Path, required=True, help="folder with tinyshakespeare")
    parser.add_argument("--keep", nargs="+", type=float, default=[0.9, 0.8, 0.65])
    parser.add_argument("--steps", type=int, default=60, help="of gates; rankings take 12 batches")
    parser.add_argument("--group-size", type=int, default=8, help="neurons that share a gate")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for the dense model, and for each method and share."""
    train, test = (_blocks(options, split) for split in ("train", "test"))
    test = test[:TEST_BLOCKS]
    yield {"method": "dense", "keep": 1.0, "perplexity": _perplexity(_load(options), test, options)}
    for keep in options.keep:
        for method in METHODS:
            yield {"method": method, "keep": keep, "seed": 0, **_run(options, method, keep, train, test)}


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the machines of the results, and the perplexity of each method at each share of the cost, as lines."""
    dense = next((row["perplexity"] for row in rows if row["method"] == "dense"), math.nan)
    shares = sorted({row["keep"] for row in rows if row["method"] != "dense"}, reverse=True)
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in (row for row in rows if row["method"] != "dense"):
        about = {name: row[name] for name in ("method", "group_size", "steps")}
        found.setdefault(tuple(about.values()), about)[str(row["keep"])] = row["perplexity"]
    columns = {"method": "method", "group_size": "neurons in a group", "steps": "steps"}
    columns |= {str(share): f"{share:.2f} of the cost" for share in shares}
    lines = [found[key] for key in sorted(found, key=lambda key: (list(METHODS).index(key[0]), *key[1:]))]
    about = f"{rows[0]['model']} in {rows[0]['precision']}. The dense model has {dense:.1f}."
    return [*records.machines(rows), about, "", records.markdown(lines, columns)]


METHODS = {
    "one-shot": lambda keep: gating.IterativePruning(
        gating.Fisher(per="token"), keep=keep, share_per_round=1.0, schedule=ONE_ROUND
    ),
    "importance": lambda keep: gating.IterativePruning(
        gating.Importance(), keep=keep, share_per_round=1.0, schedule=ONE_ROUND
    ),
    "sampled": lambda keep: gating.ExactBudget(keep=keep),
    "deterministic": lambda keep: gating.DeterministicBudget(keep=keep, ranking=gating.Fisher(per="token")),
}


def _run(options: argparse.Namespace, method: str, keep: float, train: Tensor, test: Tensor) -> dict[str, Any]:
    torch.manual_seed(0)
    order = torch.randperm(len(train))
    model = _load(options).train().requires_grad_(False)
    gates = gating.inject_gates(model, units=["heads", "neurons"], group_size=options.group_size)
    search = gating.Search(gates, METHODS[method](keep))
    learns = method in ("sampled", "deterministic")
    steps = options.steps if learns else 12
    teacher = OpenTeacher(model, gates) if learns else None
    optimizer = torch.optim.AdamW(gates.parameters(), lr=0.1 if method == "deterministic" else 0.2, weight_decay=0.0)
    started = time.perf_counter()
    for step in range(steps):
        batch = train[order[torch.arange(step * BATCH, (step + 1) * BATCH) % len(order)]]
        search.update(step / steps)
        _loss(search, model, teacher, batch, options).backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - started
    report = gating.finalize(model, gates, kept=search.kept(), probe={"input_ids": test[:1]})
    values = [value for block in report.folded.values() for value in block]
    return {
        "group_size": options.group_size,
        "steps": steps,
        "perplexity": _perplexity(model, test, options),
        "heads": sum(map(len, report.kept_heads.values())),
        "groups": sum(map(len, report.kept_neurons.values())),
        "largest_value": max(values),
        "difference": report.max_difference,
        "seconds": seconds,
        "seconds_per_step": seconds / steps,
    }


def _loss(
    search: gating.Search,
    model: PreTrainedModel,
    teacher: OpenTeacher | None,
    batch: Tensor,
    options: argparse.Namespace,
) -> Tensor:
    """Return the loss of a batch: half of it the distance to the dense model where gates are trained."""
    with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bfloat16"):
        dense = None if teacher is None else teacher(input_ids=batch)
        outputs = model(input_ids=batch, labels=batch)
        loss = outputs.loss
        if dense is not None:
            loss = gating.Distillation(temperature=1.0).loss(loss, outputs, dense, batch)
    return search.add_penalty(loss)


def _load(options: argparse.Namespace) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    model.config.use_cache = False
    return model


def _blocks(options: argparse.Namespace, split: str) -> Tensor:
    """Return the blocks of a text, ``[blocks, tokens]``."""
    text = (options.data / "tinyshakespeare" / f"{split}.txt").read_text(encoding="utf-8")
    ids = torch.tensor(AutoTokenizer.from_pretrained(options.model)(text, verbose=False)["input_ids"])
    return ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)


@torch.no_grad()
def _perplexity(model: PreTrainedModel, test: Tensor, options: argparse.Namespace) -> float:
    model.eval()
    total = 0.0
    for batch in test.split(8):
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bfloat16"):
            logits = model(input_ids=batch).logits.float()
        total += float(functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"))
    return math.exp(total / test[:, 1:].numel())


if __name__ == "__main__":
    main()
