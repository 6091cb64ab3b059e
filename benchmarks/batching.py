"""Padding that batches of similar length save, and the time that training waits for data.

    python -m benchmarks.batching --data FOLDER

Three measurements: the tokens that a model computes in an epoch, padding included, for batches of similar length (as
served here), for batches in random order, and for examples padded to the maximum length (as many example scripts do);
the share of a training step that is spent waiting for the batch; and the time of loading and tokenizing, the first time
and once more. Data are the BBC articles of the demo packages and, where ``--data`` has them, SST-2, SICK and TREC as
``FOLDER/NAME/{train,validation,test}.tsv``.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForSequenceClassification, DataCollatorWithPadding
from transformers import PreTrainedTokenizerBase as Tokenizer

from benchmarks import records
from benchmarks.measuring import ROOT, machine
from benchmarks.tokenizing import TOKENIZER, load_and_tokenize, seconds_twice
from gating.data.datamodule import ExampleDataModule
from gating.models.hub import locate
from gating.tracking.verbosity import quiet_libraries

RESULTS = ROOT / "benchmarks" / "results" / "batching.jsonl"
MEASUREMENTS = ("tokens", "waiting", "cache")
SETS = ("sst2_sentence", "sick", "trec")
# The first steps allocate memory, and loader processes have their first batches ready before they are asked for.
WARM_UP_STEPS = 2
QUICK_EXAMPLES = 200
MIN_STEPS = 3  # quartiles of fewer say nothing
Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A data set: its name, the function that loads it, and where examples are cut off."""

    name: str
    loader: str
    arguments: dict[str, str]
    max_length: int


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure, append the results to a file and print them as tables."""
    options = parse(arguments)
    quiet_libraries()
    facts = {"quick": options.quick, **machine()}
    rows = []
    try:
        for row in measure(options):
            rows.append({**row, **facts})
            records.append(options.output, rows[-1])
    except FileNotFoundError as error:  # the demo packages are missing, which the message says
        sys.exit(f"error: {error}")
    for measurement in options.measurements:
        print(records.markdown([row for row in rows if row["measurement"] == measurement], COLUMNS[measurement]) + "\n")
    return rows


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batching", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help=f"folder with the data sets {', '.join(SETS)}")
    parser.add_argument("--sets", nargs="+", default=list(SETS), help="names of the data sets in that folder")
    parser.add_argument("--measurements", nargs="+", default=list(MEASUREMENTS), choices=MEASUREMENTS)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--num-workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--max-length", type=int, default=128, help="where examples of --data are cut off")
    parser.add_argument("--bbc-max-lengths", type=int, nargs="+", default=[96, 512], help="where articles are cut off")
    parser.add_argument("--epochs", type=int, default=5, help="epochs whose tokens are counted")
    parser.add_argument("--steps", type=int, default=20, help="training steps that are timed")
    parser.add_argument("--budget", type=float, default=20, help="seconds of steps after which a case ends early")
    parser.add_argument("--quick", action="store_true", help="few examples and steps, to see that it runs")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.quick:
        options.batch_sizes, options.num_workers, options.bbc_max_lengths = [4], [0], [96]
        options.epochs, options.steps = 2, 3
    return options


def sources(options: argparse.Namespace) -> Iterator[Source]:
    """Yield the data sets that are there, and say which are not."""
    for max_length in options.bbc_max_lengths:
        yield Source("bbc", "load_bbc_news", {}, max_length)
    if options.data is None:
        print(f"{', '.join(options.sets)} are left out: name their folder with --data.", file=sys.stderr)
        return
    for name in options.sets:
        folder = options.data.resolve() / name
        files = {split: str(folder / f"{split}.tsv") for split in ("train", "validation", "test")}
        missing = next((file for file in files.values() if not Path(file).is_file()), None)
        if missing:
            print(f"{name} is left out: there is no {missing}.", file=sys.stderr)
        else:
            yield Source(name, "load_files", files, options.max_length)


def measure(options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of all measurements."""
    for source in sources(options):
        common = {"data": source.name, "max_length": source.max_length}
        # Longer examples make steps longer, and so the share of waiting smaller.
        is_usual = source.max_length in (options.max_length, options.bbc_max_lengths[0])
        splits, tokenizer, _ = load_and_tokenize(
            source.loader, source.arguments, source.max_length, limit=QUICK_EXAMPLES if options.quick else None
        )
        for batch_size in options.batch_sizes:
            case = {**common, "batch_size": batch_size}
            if "tokens" in options.measurements:
                counts = count_tokens(splits, tokenizer, source.max_length, batch_size, options.epochs)
                yield {"measurement": "tokens", **case, **counts}
            for num_workers in options.num_workers if "waiting" in options.measurements and is_usual else ():
                waiting = time_waiting(splits, tokenizer, batch_size, num_workers, options.steps, options.budget)
                yield {"measurement": "waiting", **case, "num_workers": num_workers, **waiting}
        if "cache" in options.measurements:
            first, second = seconds_twice(source.loader, source.arguments, source.max_length)
            times = {
                f"{step}_{run}": run_s[step] for run, run_s in (("first", first), ("second", second)) for step in first
            }
            yield {"measurement": "cache", **common, **times, "ratio": sum(second.values()) / sum(first.values())}


def count_tokens(splits: DatasetDict, tokenizer: Tokenizer, max_length: int, batch_size: int, epochs: int) -> Row:
    """Count the tokens of the batches that each way serves, as ratios to the batches of similar length.

    Returns:
        Medians and quartiles over epochs, which shuffle differently.
    """
    dynamic = DataCollatorWithPadding(tokenizer)
    padded = DataCollatorWithPadding(tokenizer, padding="max_length", max_length=max_length)
    train = splits["train"]
    own = sum(len(ids) for ids in train["input_ids"])
    grouped = ExampleDataModule(splits, collate=dynamic, batch_size=batch_size).train_dataloader()
    shuffled = DataLoader(
        train, batch_size, shuffle=True, collate_fn=dynamic, generator=torch.Generator().manual_seed(0)
    )
    to_maximum = _tokens(DataLoader(train, batch_size, collate_fn=padded))
    ours, at_random = [], []
    for epoch in range(epochs):
        grouped.sampler.set_epoch(epoch)
        ours.append(_tokens(grouped))
        at_random.append(_tokens(shuffled))
    return {
        "examples": len(train),
        "tokens": statistics.median(ours),
        "without_padding": _spread([own / one for one in ours]),
        "random": _spread([other / one for other, one in zip(at_random, ours, strict=True)]),
        "to_maximum": _spread([to_maximum / one for one in ours]),
    }


def time_waiting(
    splits: DatasetDict, tokenizer: Tokenizer, batch_size: int, num_workers: int, steps: int, budget_s: float
) -> Row:
    """Time how long each training step of a MiniLM waits for its batch, as a share of the whole step."""
    collate = DataCollatorWithPadding(tokenizer)
    data = ExampleDataModule(splits, collate=collate, batch_size=batch_size, num_workers=num_workers)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    config = AutoConfig.from_pretrained(locate(TOKENIZER), num_labels=len(set(splits["train"]["labels"])))
    model = AutoModelForSequenceClassification.from_config(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters())
    start = time.perf_counter()
    batches = iter(data.train_dataloader())
    next(batches)
    first_batch = time.perf_counter() - start
    shares, waits = [], []
    end = time.perf_counter() + budget_s
    for step in range(min(WARM_UP_STEPS + max(steps, MIN_STEPS), data.num_batches() - 1)):
        if step >= WARM_UP_STEPS + MIN_STEPS and time.perf_counter() > end:
            break
        start = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - start)
        loss = model(**batch.to(device)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for an accelerator
        shares.append(waits[-1] / (time.perf_counter() - start))
    shares, waits = shares[WARM_UP_STEPS:], waits[WARM_UP_STEPS:]
    return {
        "steps": len(shares),
        "share": _spread(shares),
        "wait_ms": 1000 * statistics.median(waits),
        "first_batch_s": first_batch,
    }


def _tokens(batches: Iterable[Any]) -> int:
    return sum(batch["input_ids"].numel() for batch in batches)


def _spread(values: list[float]) -> tuple[float, float, float]:
    """Return the median and the quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return median, low, high


_CASE = {"data": "data", "max_length": "max. length"}
COLUMNS = {
    "tokens": {
        **_CASE,
        "batch_size": "batch",
        "examples": "examples",
        "tokens": "tokens, similar lengths",
        "without_padding": "no padding / similar",
        "random": "random / similar",
        "to_maximum": "to maximum / similar",
    },
    "waiting": {
        **_CASE,
        "batch_size": "batch",
        "num_workers": "processes",
        "share": "share of a step",
        "wait_ms": "wait, ms",
        "first_batch_s": "first batch, s",
    },
    "cache": {
        **_CASE,
        "load_first": "load, s",
        "tokenize_first": "tokenize, s",
        "load_second": "load again, s",
        "tokenize_second": "tokenize again, s",
        "ratio": "again / first",
    },
}

if __name__ == "__main__":
    main()
