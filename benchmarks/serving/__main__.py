"""Measure compact models in other runtimes: their tokens, caches and speed.

    python -m benchmarks.serving --data OUT --runs RUNS         everything; about half an hour on two cores
    python -m benchmarks.serving tokens cache                   sections that train nothing
    python -m benchmarks.serving --quick                        tiny models, to see that it works; nothing is written

OUT is that of `python -m benchmarks.data OUT`, and RUNS keeps the trained runs, so that none is trained twice.
Section encoder needs ONNX Runtime and OpenVINO; others leave out runtimes that are not installed: pip install -e
'.[onnx,openvino,gguf]', and for vLLM an environment of its own (--vllm PYTHON). --quick leaves encoder out. Results are
in benchmarks/results/serving.jsonl, a line for each case; a new one replaces that of the same kind. ``python -m
benchmarks.page`` writes the tables.
"""

import argparse
import importlib.metadata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from benchmarks import records
from benchmarks.measuring import ROOT, machine
from benchmarks.serving.cache import measure_cache
from benchmarks.serving.encoder import measure_encoder
from benchmarks.serving.tokens import measure_tokens, measure_vllm

__all__ = ["RESULTS", "SECTIONS", "main"]

Row = dict[str, Any]

RESULTS = ROOT / "benchmarks" / "results" / "serving.jsonl"
SECTIONS = ("tokens", "vllm", "cache", "encoder")
_KEY = ("section", "family", "pattern", "kept", "model", "runtime", "dtype")
# Packages of the runtimes, whose versions belong to the results.
_PACKAGES = ("xllamacpp", "gguf", "onnxruntime", "openvino", "nncf")


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure, print and record; return the results."""
    options = parse(arguments)
    torch.set_num_threads(1)
    disable_progress_bar()
    set_verbosity_error()
    console, rows = Console(highlight=False, soft_wrap=True), list[Row]()
    facts = {**machine(), **_versions()}
    for section in options.sections:
        for measured in _measure(section, options):
            # One table has the tokens of all runtimes.
            row = {"section": "tokens" if section == "vllm" else section, **measured, **facts}
            rows.append(row)
            console.print({name: value for name, value in row.items() if name not in facts})
            if not options.quick:
                replace(row)
    return rows


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"some of: {', '.join(SECTIONS)}; all by default"
    )
    parser.add_argument("--data", type=Path, metavar="OUT", help="folder with trec/")
    parser.add_argument("--runs", type=Path, metavar="RUNS", help="folder for the trained runs")
    parser.add_argument("--vllm", metavar="PYTHON", help="interpreter of an environment with vLLM, for section vllm")
    parser.add_argument("--quick", action="store_true", help="tiny models; nothing is written")
    options = parser.parse_args(arguments)
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"there is no section {sorted(unknown)[0]!r}; choose from {', '.join(SECTIONS)}")
    options.sections = options.sections or list(SECTIONS)
    if not options.quick and "encoder" in options.sections and not (options.data and options.runs):
        parser.error("encoder needs --data and --runs")
    return options


def replace(row: Row) -> None:
    """Write a result in the place of the one of the same kind."""
    rows = [other for other in records.read(RESULTS) if _key(other) != _key(row)]
    records.write(RESULTS, [*rows, row])


def _measure(section: str, options: argparse.Namespace) -> Iterator[Row]:
    quick: bool = options.quick
    if section == "vllm":
        return measure_vllm(options.vllm) if options.vllm and not quick else iter(())
    if section == "encoder":
        return measure_encoder(data=options.data, runs=options.runs) if not quick else iter(())
    return measure_tokens(quick=quick) if section == "tokens" else measure_cache(quick=quick)


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in _KEY)


def _versions() -> dict[str, str]:
    found = {each.name: each.version for each in importlib.metadata.distributions() if each.name in _PACKAGES}
    return {name: found[name] for name in _PACKAGES if name in found}


if __name__ == "__main__":
    main()
