"""Runs that are killed at random moments and resumed, compared with an uninterrupted run.

    python -m benchmarks.faults
    python -m benchmarks.faults --points 5 --seed 7 --output /tmp/faults.jsonl

Each point is a whole run of a tiny model: gates, removal, recovery, export. It is killed at a random moment, mostly by
SIGKILL and sometimes by SIGTERM, and resumes with ``resume=auto``; every third one is killed once more on its way. Of
four moments, three are in or just after a random batch of training, and one is anywhere from the loading of the model
to the last picture. Compared are the weights of the compact model to the bit, its kept heads, all numbers of
``metrics.json`` but times, and the rows of the CSV file. Needs Linux or macOS.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_dir
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

import train
from benchmarks import records
from benchmarks.measuring import RESULTS, machine
from gating.tracking.loggers import read_log
from gating.training.module import FineTuning

OUTPUT = RESULTS / "faults.jsonl"
_FOUR_HEADS = "objective.num_heads=4"
# Checkpoints are close, so that kills fall before, in and after their writing.
VARIANTS: dict[str, list[str]] = {
    "budget": [_FOUR_HEADS],
    "importance, accumulating": ["objective=importance", "trainer.accumulate_grad_batches=2", _FOUR_HEADS],
    "top-k": ["objective=topk", _FOUR_HEADS],
    "Lagrangian": ["objective=lagrangian", _FOUR_HEADS],
    "dense": ["objective=none"],
}
SETTINGS = (
    *("model=pretrained", "data=files", "data.batch_size=8", "optimizer.lr=1e-3", "latency.max_seconds=1"),
    *("trainer.max_steps=24", "trainer.val_check_interval=4", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1"),
    *("logger=csv", "callbacks.checkpoint.every_n_steps=2"),
)
COLUMNS = {
    "variant": "run",
    "kills": "killed by",
    "same_weights": "same weights",
    "same_heads": "same heads",
    "same_metrics": "same metrics",
    "same_log": "same log",
}
JUDGED = [name for name in COLUMNS if name.startswith("same")]
_PATIENCE = 600  # Seconds after which something hangs.
_processes = multiprocessing.get_context("forkserver")


class Kill(NamedTuple):
    """A moment and a signal: seconds after the beginning of a training batch, counted from 1, or of the process (0)."""

    batch: int
    delay: float
    by: signal.Signals


class Ended(NamedTuple):
    """The end of a process: its exit code, the training batches that it began, and its seconds."""

    code: int
    batches: int
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill, resume and compare runs; return the number of those with other results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    _processes.set_forkserver_preload(["benchmarks.faults"])
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for row in interrupt(Path(scratch), num_points=options.points, seed=options.seed):
            print(json.dumps(row), flush=True)
            rows.append({**row, **machine()})
    records.write(options.output, rows)
    different = sum(not all(row[name] for name in JUDGED) for row in rows)
    print(records.markdown(rows, COLUMNS))
    print(f"{len(rows) - different} of {len(rows)} interrupted runs ended as the uninterrupted one did.")
    return different


def table(rows: Sequence[records.Row]) -> list[str]:
    """Return the table of the page."""
    return [*records.machines(rows), records.markdown(rows, COLUMNS)]


def interrupt(scratch: Path, *, num_points: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each interrupted run."""
    chance, inputs = random.Random(seed), make_inputs(scratch)
    wholes: dict[str, tuple[dict[str, Any], Ended]] = {}
    for point in range(num_points):
        variant = list(VARIANTS)[point % len(VARIANTS)]
        settings = [*inputs, *VARIANTS[variant]]
        if variant not in wholes:
            whole = scratch / f"whole-{len(wholes)}"
            ended = run(whole, settings)
            wholes[variant] = results(whole), ended
        expected, left = wholes[variant]
        folder, kills = scratch / f"point-{point}", []
        while len(kills) < (2 if point % 3 == 0 else 1):
            kill = at_random(chance, left)
            ended = run(folder, settings, kill)
            if not ended.code:
                break
            kills.append(f"{kill.by.name} {progress(folder)}")
            left = Ended(0, max(1, left.batches - ended.batches), max(1.0, left.seconds - ended.seconds))
        if ended.code:
            run(folder, settings)
        found = results(folder)
        same = {name: found[name] == expected[name] for name in JUDGED}
        yield {
            "variant": variant,
            "point": point,
            "seed": seed,
            "kills": "; ".join(kills) or "ended before it was killed",
            **same,
        }


def at_random(chance: random.Random, left: Ended) -> Kill:
    """Choose a moment of a run that has so many training batches and seconds left."""
    by = signal.SIGTERM if chance.random() < 0.25 else signal.SIGKILL
    if chance.random() < 0.25:
        return Kill(0, left.seconds * chance.random(), by)
    return Kill(chance.randint(1, left.batches), 0.05 * chance.random(), by)


def run(folder: Path, settings: Sequence[str], kill: Kill | None = None) -> Ended:
    """Run train.py in a fork of a process that has everything imported, and kill it at a moment.

    Raises:
        RuntimeError: It failed by itself.
    """
    overrides = [*settings, f"output_dir={folder}", "resume=auto"]
    reader, writer = _processes.Pipe(duplex=False)
    process = _processes.Process(target=_run, args=(overrides, folder.with_suffix(".txt"), writer))
    process.start()
    writer.close()
    batches = reader.recv()  # It begins now.
    start = time.perf_counter()
    with contextlib.suppress(EOFError):
        while kill is None or batches < kill.batch:
            batches = reader.recv()
    if kill is not None:
        process.join(kill.delay)
        if process.is_alive():
            os.kill(process.pid, kill.by)
    process.join(_PATIENCE)
    if process.is_alive():
        process.kill()
    if process.exitcode not in (0, *(() if kill is None else (-kill.by, 128 + kill.by))):
        raise RuntimeError(f"exit code {process.exitcode}: {folder.with_suffix('.txt').read_text()}")
    return Ended(process.exitcode, batches, time.perf_counter() - start)


def _run(overrides: list[str], log: Path, writer: Any) -> None:
    """Run as ``python train.py`` does, and send the number of each training batch."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    torch.set_num_threads(1)
    training_step, counted = FineTuning.training_step, itertools.count(1)

    def step(self: FineTuning, batch: Any, batch_idx: int) -> torch.Tensor:
        writer.send(next(counted))
        return training_step(self, batch, batch_idx)

    FineTuning.training_step = step
    with initialize_config_dir(str(train.CONF), version_base="1.3"):
        settings = compose("config", overrides=overrides)
    with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        writer.send(0)
        train.guarded_run(settings)


def results(folder: Path) -> dict[str, Any]:
    """Return the results of a finished run, by the names of their comparisons."""
    numbers = json.loads((folder / "metrics.json").read_text())
    config = json.loads((folder / "compact" / "config.json").read_text())
    measured = ("seconds/", "latency_", "speedup")
    return {
        "same_weights": (folder / "compact" / "model.safetensors").read_bytes(),
        "same_heads": config.get("head_gating", {}).get("units", {}),
        "same_metrics": repr({name: value for name, value in numbers.items() if not name.startswith(measured)}),
        "same_log": repr(read_log(folder)),
    }


def progress(folder: Path) -> str:
    """Describe the progress of a run by its files."""
    if (folder / "compact").exists():
        return "after the export"
    for phase in ("recovery", "removed", "dense", "search"):
        steps = [int(path.stem.partition("-")[2]) for path in (folder / "checkpoints" / phase).glob("step-*.ckpt")]
        if steps:
            return f"in {phase} after step {max(steps)}" if phase != "removed" else "after the removal"
    return "before a checkpoint" if (folder / "config.yaml").exists() else "while loading"


def make_inputs(folder: Path) -> list[str]:
    """Write a random BERT of 3 layers and tables whose first word decides the label; return the settings of a run."""
    model, words, rng = folder / "model", [f"word{number}" for number in range(40)], random.Random(0)
    model.mkdir()
    (model / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    BertTokenizer(vocab=str(model / "vocab.txt")).save_pretrained(model)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=45, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
    BertForSequenceClassification(config).save_pretrained(model)
    files = []
    for split, rows in {"train": 64, "validation": 16, "test": 16}.items():
        texts = [f"{words[row % 2]} {' '.join(rng.choices(words[2:], k=5))}\tlabel{row % 2}" for row in range(rows)]
        (folder / f"{split}.tsv").write_text("\n".join(["text\tlabel", *texts]) + "\n")
        files.append(f"data.{split}={folder / split}.tsv")
    return [*SETTINGS, f"model.name={model}", *files]


if __name__ == "__main__":
    sys.exit(main())
