"""Test accuracy of fine-tuned models made smaller without training: after the removal alone, and compensated.

    python -m benchmarks.compare --results DENSE.jsonl --keep KEPT --methods none --data OUT/sick OUT/sst2_sentence
    python -m benchmarks.untrained KEPT --results benchmarks/results/untrained.jsonl
    python -m benchmarks.untrained KEPT --results benchmarks/results/untrained.jsonl --time
    python -m benchmarks.untrained KEPT --results benchmarks/results/untrained.jsonl --heal 140 --data OUT/sick

KEPT is the folder of dense runs that the first command keeps. Each model is ranked on 1,024 training examples with
labels; for each share of the cost its lowest units are removed, and 1,024 other training examples, without labels, are
enough to solve its output projections. ``--time`` measures the models with nothing else running, and adds 8 bits.
``--heal`` trains models of the same size by that many steps from the removal, and from the compensation, with labels
and the dense model as the teacher: runs of train.py, for the data sets that are named as in benchmarks.compare.
"""

import argparse
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from transformers import PreTrainedModel

import gating
from benchmarks import records
from benchmarks.compare.__main__ import COMMON
from benchmarks.compare.kept import speeds
from benchmarks.compare.methods import Data, read_data
from benchmarks.compare.runs import read_numbers, train
from benchmarks.measuring import machine
from benchmarks.serving.encoder import graph, pytorch
from gating.commands.evaluate import evaluation_settings
from gating.compensation.ranking import rank_units, remove_chosen
from gating.data.examples import model_inputs
from gating.models.sources import Pretrained
from gating.run.build import RunObjects, build_objects
from gating.run.data import RunData, encode_examples, load_examples
from gating.serving.graphs.runtime import GraphModel
from gating.structure.layers import count_units
from gating.tracking.verbosity import quiet_libraries

SHARES = (0.7, 0.5, 0.4, 0.3)
_RANKED, _SOLVED, _BATCH = 1024, 1024, 16
_KINDS = {
    "removed": "removed alone",
    "from_removed": "removed, and healed",
    "compensated": "compensated",
    "int8": "and 8 bits",
    "from_compensated": "compensated, and healed",
}
_TITLES = {"sick": "SICK", "sst2_sentence": "SST-2", "snli20k": "SNLI", "example": "BBC News"}


def main() -> None:
    """Measure the models that are not in the results yet."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.untrained",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kept", type=Path, help="the folder with dense runs")
    parser.add_argument("--results", type=Path, required=True, help="the file of JSON lines")
    parser.add_argument("--runs", default="*-none-None-*", help="pattern of the names of the runs")
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES)
    parser.add_argument("--time", action="store_true", help="time the models that were made, and add 8 bits")
    parser.add_argument("--heal", type=int, help="steps of a training that follows")
    parser.add_argument("--data", nargs="+", default=[], help="of --heal: folders, or 'NAME:SETTINGS'")
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    if options.heal is not None:
        for data in map(read_data, options.data):
            heal(data, options)
        return
    for folder in sorted(options.kept.glob(options.runs)):
        if options.time:
            measure(folder, options)
            continue
        done = {row["keep"] for row in records.read(options.results) if row["run"] == folder.name}
        missing = [share for share in options.shares if share not in done]
        for row in make(folder, missing, options.kept) if missing else ():
            records.append(options.results, row)
            print(
                f"{row['run']} {row['keep']}: {row['dense']:.4f} {row['removed']:.4f} {row['compensated']:.4f}",
                flush=True,
            )


def load(run: Path) -> tuple[RunObjects, PreTrainedModel, RunData]:
    """Return the dense model of a run with the run's data."""
    settings = evaluation_settings(str(run / "compact"), [], run_folder=run, split="train")
    objects = replace(build_objects(settings), source=Pretrained(str(run / "compact")))
    model = gating.load_compact(run / "compact").eval()
    return objects, model, encode_examples(load_examples(settings, objects), settings, objects, model)


def make(run: Path, shares: Sequence[float], kept: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each share of the cost; the models are saved beside the run."""
    objects, model, data = load(run)
    score = partial(data.evaluate, split="test", task=objects.task, metrics=data.prepared.metrics, title="test")
    name, _, _, seed, steps = re.fullmatch(r"(\w+)-(\w+)-(\w+)-(\d+)-(\d+)", run.name).groups()
    started = time.perf_counter()
    ranked = [model_inputs(batch) for batch in data.module.sample_batches(_RANKED)]
    gates = rank_units(model, ranked, keep=min(SHARES))
    ranking = time.perf_counter() - started
    solved = [model_inputs(batch) for batch in data.module.sample_batches(_SOLVED, skip=_RANKED)]
    for share in shares:
        compact = deepcopy(model)
        started = time.perf_counter()
        probe = data.module.timing_batch("median", split="train")
        remove_chosen(compact, gating.ExactBudget(keep=share).kept(gates), probe=probe)
        removal = time.perf_counter() - started
        removed = score(compact).metrics["accuracy"]
        report = gating.compensate(compact, model, solved)
        gating.save_compact(compact, kept / f"untrained-{run.name}-{share:g}", tokenizer=data.processor, overwrite=True)
        yield {
            "run": run.name,
            "data": name,
            "seed": int(seed),
            "steps": int(steps),
            "keep": share,
            "heads": count_units(compact, "heads"),
            "neurons": count_units(compact, "neurons"),
            "dense": read_numbers(run)["test/accuracy"],
            "removed": removed,
            "compensated": score(compact).metrics["accuracy"],
            "outputs": report.outputs,
            "num_positions": report.num_positions,
            "seconds": {"ranking": ranking, "removal": removal, "compensation": report.seconds},
            **machine(),
        }


def measure(run: Path, options: argparse.Namespace) -> None:
    """Add the speed-ups of the models of a run, and their accuracy and speed with 8-bit weights, to the results."""
    own = [row for row in records.read(options.results) if row["run"] == run.name]
    rows = [row for row in own if "speedup" not in row]
    if own and all(row["keep"] < 1 for row in own):
        rows.append({**{name: own[0][name] for name in ("run", "data", "seed", "steps", "dense")}, "keep": 1.0})
    if not rows:
        return
    objects, dense, data = load(run)
    for row in rows:
        folder = run / "compact" if row["keep"] == 1 else options.kept / f"untrained-{run.name}-{row['keep']:g}"
        model = gating.load_compact(folder).eval()
        found = speeds(pytorch(dense), pytorch(model), data)
        with tempfile.TemporaryDirectory() as place:
            report = gating.export_onnx(folder, Path(place) / "int8", int8=True)
            exported: Any = GraphModel(model.config, report.path)
            metrics = data.prepared.metrics
            int8 = data.evaluate(exported, "test", task=objects.task, metrics=metrics, title="int8").metrics["accuracy"]
            fast = speeds(pytorch(dense), graph(report.path), data)
        units = {name: count_units(model, name) for name in ("heads", "neurons")}
        about = {"int8": int8, **{f"int8_{name}": value for name, value in fast.items()}, "timed": machine()["date"]}
        row = {**machine(), **row, **units, **found, **about}
        records.replace(options.results, row, key=lambda one: (one["run"], one["keep"]))
        print(row["run"], row["keep"], found, int8, flush=True)


def heal(data: Data, options: argparse.Namespace) -> None:
    """Add the test accuracies after a training that follows the removal, and the compensation, to the results."""
    for row in records.read(options.results):
        run = options.kept / row["run"]
        if row["data"] != data.name or row["keep"] not in options.shares or "healed" in row or not run.is_dir():
            continue
        dense, steps = run / "compact", _RANKED // _BATCH
        settings = [
            *data.settings,
            *COMMON,
            "experiment=untrained",
            f"model.name={dense}",
            f"objective.keep={row['keep']}",
            "optimizer.freeze=search",
            "optimizer.lr=5e-5",
            "distillation=logits",
            f"distillation.teacher={dense}",
            f"trainer.max_steps={steps + options.heal}",
            f"recovery={options.heal / (steps + options.heal)}",
            f"seed={row['seed']}",
        ]
        found = {}
        for start, compensates in (("from_removed", "false"), ("from_compensated", "true")):
            with tempfile.TemporaryDirectory() as place:
                numbers = train([*settings, f"compensate={compensates}"], Path(place) / "run", threads=1)
            found[start] = numbers["test/accuracy"]
        row = {**row, **found, "healed": options.heal}
        records.replace(options.results, row, key=lambda one: (one["run"], one["keep"]))
        print(row["run"], row["keep"], found, flush=True)


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the machines, and a line for each share: the change of accuracy by data set, removed and compensated."""
    names = [name for name in _TITLES if any(row["data"] == name for row in rows)]
    lines = []
    for share in sorted({row["keep"] for row in rows}, reverse=True):
        for kind, title in _KINDS.items():
            own = [row for row in rows if row["keep"] == share and kind in row]
            speed = {"compensated": "speedup", "int8": "int8_speedup"}.get(kind)
            timed = [row[speed] for row in own if speed in row]
            cells = {_TITLES[name]: _change([row for row in own if row["data"] == name], kind) for name in names}
            if own:
                lines.append(
                    {
                        "cost kept": f"{share:g}",
                        "": "dense, 8 bits" if share == 1 else title,
                        **cells,
                        "speed-up": mean(timed) if timed else None,
                        "heads": round(mean(row["heads"] for row in own)),
                        "neurons": round(mean(row["neurons"] for row in own)),
                        "seconds": round(mean(sum(row["seconds"].values()) for row in own))
                        if kind == "compensated"
                        else None,
                    }
                )
    dense = {
        _TITLES[
            name
        ]: f"{100 * mean({row['seed']: row['dense'] for row in rows if row['data'] == name}.values()):.1f} %"
        for name in names
    }
    return [
        *records.machines(rows),
        records.markdown([{"cost kept": "1", "": "dense", **dense}, *lines], list(lines[0])),
    ]


def _change(rows: Sequence[Mapping[str, Any]], kind: str) -> str | None:
    """Return the mean change from the dense model in points, with its standard error over seeds."""
    changes = [100 * (row[kind] - row["dense"]) for row in rows]
    if len(changes) < 2:
        return f"{changes[0]:+.2f}" if changes else None
    return f"{mean(changes):+.2f} ± {stdev(changes) / len(changes) ** 0.5:.2f}"


if __name__ == "__main__":
    main()
