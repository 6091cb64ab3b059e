"""Sentence embeddings: smaller models of all-MiniLM-L6-v2, their quality and their sentences per second.

    python -m benchmarks.embeddings texts --data OUT --work WORK --stsb FILE     the training texts, in WORK/texts
    python -m benchmarks.embeddings lines --data OUT --work WORK --stsb FILE     train and measure what is missing
    python -m benchmarks.embeddings quality FOLDER --data OUT --stsb FILE        any folder of sentence-transformers

OUT is that of `python -m benchmarks.data OUT`, and WORK keeps texts and runs. FILE is the test set of STS-B, csv
without a header: data/stsb-en-test.csv of https://github.com/PhilipMay/stsb-multi-mt. A run takes about half an hour
on one core; results that are in benchmarks/results/embeddings.jsonl are not measured again, and a run that was
interrupted is resumed.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from benchmarks import records
from benchmarks.embeddings.lines import LINES, PYTORCH, RUNTIMES, key, settings_of, wanted
from benchmarks.embeddings.measure import DENSE, measure_quality, measure_speed, nearest, open_model
from benchmarks.embeddings.texts import TRAIN, Sets, read_sets, write_texts
from benchmarks.measuring import RESULTS, machine, run_python

Row = dict[str, Any]

OUTPUT = RESULTS / "embeddings.jsonl"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and record."""
    options = parse(arguments)
    torch.set_num_threads(1)
    disable_progress_bar()
    set_verbosity_error()
    sets = read_sets(options.data, options.stsb)
    if options.action == "quality":
        neighbors = nearest(open_model(DENSE, PYTORCH), sets.sentences)
        for folder in options.folders:
            for runtime in RUNTIMES:
                print(folder, runtime, measure_quality(open_model(folder, runtime), sets, neighbors))
        return
    if options.action == "texts" or not (options.work / "texts" / TRAIN).is_file():
        if options.stsb is None:
            raise SystemExit("Texts are written without those of STS-B, which would be among them: give --stsb FILE.")
        print(write_texts(options.data, options.work / "texts", sets))
    if options.action == "lines":
        measure_lines(options, sets)


def measure_lines(options: argparse.Namespace, sets: Sets) -> None:
    """Train and measure the lines that have no results, seed by seed."""
    # The tables compare with the dense model.
    jobs: list[tuple[str, int | None]] = [("dense", None)]
    jobs += [(name, seed) for seed in options.seeds for name in options.lines if name != "dense"]
    for name, seed in jobs:
        done = {key(row) for row in records.read(OUTPUT) if row["section"] == "lines"}
        if all(key(row) in done for row in wanted(name, seed)):
            continue
        if seed is not None:
            train_line(name, seed, work=options.work)
        for row in measure_line(name, seed, sets, work=options.work):
            if key(row) not in done:
                records.append(OUTPUT, {"section": "lines", **row})
                print(row)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embeddings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("texts", "lines", "quality"))
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="of quality")
    parser.add_argument("--data", type=Path, required=True, metavar="OUT", help="folder of the data")
    parser.add_argument("--work", type=Path, metavar="WORK", help="folder for texts and runs")
    parser.add_argument("--stsb", type=Path, metavar="FILE", help="test set of STS-B; needed where texts are written")
    parser.add_argument("--lines", nargs="+", choices=LINES, default=list(LINES), metavar="LINE", help=", ".join(LINES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(3)), help="(default: 0 1 2)")
    options = parser.parse_args(arguments)
    if not (options.folders if options.action == "quality" else options.work):
        parser.error("quality needs folders, texts and lines need --work")
    return options


def train_line(name: str, seed: int, *, work: Path) -> None:
    """Train the run of a line, or resume it, unless it is finished."""
    folder = run_folder(name, seed, work=work)
    if not (folder / "metrics.json").is_file():
        settings = settings_of(name, seed, texts=work / "texts", folder=folder)
        fixed = ["exports=[]", "logger=csv", "trainer.enable_progress_bar=false", "resume=auto"]
        run_python("train.py", *settings, *fixed, threads=1)


def run_folder(name: str, seed: int, *, work: Path) -> Path:
    """Return the folder of a run, which other settings and other texts give another name."""
    digest = hashlib.sha256(wanted(name, seed)[0]["settings"].encode())
    digest.update((work / "texts" / TRAIN).read_bytes())
    return (work / "runs" / f"{name}-s{seed}-{digest.hexdigest()[:8]}").resolve()


def measure_line(name: str, seed: int | None, sets: Sets, *, work: Path) -> Iterator[Row]:
    """Yield the results of a line, one for each runtime, all timed in turns with the dense model, which has no seed."""
    sizes: Row = {}
    folders = {"dense": DENSE}
    if seed is not None:
        folder = run_folder(name, seed, work=work)
        numbers = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        sizes = {each: numbers[each] for each in ("num_heads", "num_neurons", "num_parameters") if each in numbers}
        folders[name] = str(folder / "compact")
    rows = wanted(name, seed)
    models = {
        (line, row["runtime"]): open_model(place, row["runtime"]) for line, place in folders.items() for row in rows
    }
    speeds = measure_speed(models)
    neighbors = nearest(models["dense", PYTORCH], sets.sentences)
    for row in rows:
        model = (name, row["runtime"])
        yield {**row, **sizes, **measure_quality(models[model], sets, neighbors), **speeds[model], **machine()}


if __name__ == "__main__":
    main()
