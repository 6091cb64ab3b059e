"""Sentence embeddings: smaller models of all-MiniLM-L6-v2, their quality and their sentences per second.

    python -m benchmarks.embeddings texts --data DATA --work WORK --stsb FILE     the training texts, in WORK/texts
    python -m benchmarks.embeddings lines --data DATA --work WORK --stsb FILE     train and measure what is missing
    python -m benchmarks.embeddings speed --data DATA --work WORK                 time what is measured again
    python -m benchmarks.embeddings quality FOLDER --data DATA --stsb FILE        any folder of sentence-transformers
    python -m benchmarks.embeddings release FOLDER OUT                            a compact folder in half precision

DATA has sick/, snli20k/, multi30k/, sst2_sentence/ and trec/ (train.tsv, validation.tsv, test.tsv), and WORK keeps
texts and runs. FILE is the test set of STS-B, csv without a header. A line with five seeds takes hours on one
core; results that are in benchmarks/results/embeddings.jsonl are not measured again, and a run that was interrupted is
resumed. ``python -m benchmarks.page`` writes the tables of docs/embeddings.md and of the README.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from benchmarks import records
from benchmarks.embeddings import runs
from benchmarks.embeddings.lines import LINES, PYTORCH, key, wanted
from benchmarks.embeddings.models import DENSE, open_model
from benchmarks.embeddings.quality import nearest
from benchmarks.embeddings.release import release
from benchmarks.embeddings.sets import Sets, read_sets
from benchmarks.embeddings.texts import TRAIN, write_texts
from benchmarks.measuring import ROOT, machine

Row = dict[str, Any]

RESULTS = ROOT / "benchmarks" / "results" / "embeddings.jsonl"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and record."""
    options = parse(arguments)
    torch.set_num_threads(1)
    disable_progress_bar()
    set_verbosity_error()
    console = Console(highlight=False, soft_wrap=True)
    if options.action == "release":
        console.print(release(*options.folders))
        return
    sets = read_sets(options.data, options.stsb)
    if options.action == "quality":
        neighbors = nearest(open_model(DENSE, PYTORCH), sets.sentences)
        for folder in options.folders:
            for row in runs.measure_folder(folder, sets, neighbors=neighbors):
                console.print(row)
        return
    if options.action == "texts" or not (options.work / "texts" / TRAIN).is_file():
        if options.stsb is None:
            raise SystemExit("Texts are written without those of STS-B, which would be among them: give --stsb FILE.")
        row = {"section": "texts", **write_texts(options.data, options.work / "texts", sets), **machine()}
        console.print(row)
        replace_texts(row)
    if options.action == "lines":
        measure_lines(options, sets, console)
    if options.action == "speed":
        time_lines(options)


def measure_lines(options: argparse.Namespace, sets: Sets, console: Console) -> None:
    """Train and measure the lines that have no results, seed by seed."""
    # The tables compare with the dense model.
    jobs: list[tuple[str, int | None]] = [("dense", None)]
    jobs += [(name, seed) for seed in options.seeds for name in options.lines if name != "dense"]
    for name, seed in jobs:
        done = {key(row) for row in records.read(RESULTS) if row["section"] == "lines"}
        if all(key(row) in done for row in wanted(name, seed)):
            continue
        if seed is not None:
            if options.measure_only and not runs.is_finished(runs.run_folder(name, seed, work=options.work)):
                continue
            runs.train_line(name, seed, work=options.work)
        for row in runs.measure_line(name, seed, sets, work=options.work):
            if key(row) not in done:
                records.append(RESULTS, {"section": "lines", **row})
                console.print(row)


def time_lines(options: argparse.Namespace) -> None:
    """Time the lines that have results again, such as on a machine that does nothing else."""
    stored = records.read(RESULTS)
    present = [
        row for row in stored if row["section"] == "lines" and key(row) in map(key, wanted(row["line"], row["seed"]))
    ]
    for name, seed in dict.fromkeys((row["line"], row["seed"]) for row in present if row["line"] in options.lines):
        own = [row for row in present if (row["line"], row["seed"]) == (name, seed)]
        again = {key(row): row for row in runs.time_again(own, work=options.work)}
        stored = [again.get(key(row), row) if row["section"] == "lines" else row for row in stored]
        records.write(RESULTS, stored)


def replace_texts(row: Row) -> None:
    """Record the training texts in the place of former ones."""
    records.write(RESULTS, [row, *(other for other in records.read(RESULTS) if other["section"] != "texts")])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embeddings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("texts", "lines", "speed", "quality", "release"))
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="of quality; FOLDER and OUT of release")
    parser.add_argument("--data", type=Path, metavar="DATA", help="folder of the data")
    parser.add_argument("--work", type=Path, metavar="WORK", help="folder for texts and runs")
    parser.add_argument("--stsb", type=Path, metavar="FILE", help="test set of STS-B; needed where texts are written")
    parser.add_argument("--lines", nargs="+", choices=LINES, default=list(LINES), metavar="LINE", help=", ".join(LINES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)), help="(default: 0 1 2 3 4)")
    parser.add_argument("--measure-only", action="store_true", help="leave out runs that are not finished")
    options = parser.parse_args(arguments)
    if options.action == "release":
        if len(options.folders) != 2:
            parser.error("release needs a compact folder and a new one: release FOLDER OUT")
    elif not options.data or not (options.work or options.action == "quality"):
        parser.error(f"{options.action} needs --data" + ("" if options.action == "quality" else " and --work"))
    elif (options.action == "quality") != bool(options.folders):
        parser.error("quality needs folders, and only quality and release take some")
    return options


if __name__ == "__main__":
    main()
