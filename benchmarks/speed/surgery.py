"""Time and memory of finalizing, in fresh processes, and time of reloading."""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, BertForSequenceClassification, LlamaConfig, PreTrainedModel

import gating
from benchmarks.measuring import ask
from benchmarks.peaks import peak, start_peak
from benchmarks.speed.shapes import LLAMA_1B, Bench, Row, bert, compact_copy, llama, row
from gating.proof.probe import make_probe

_MODELS = ["bert-base", "llama-1b"]
# Large blocks of memory go back to the system as they are freed, so that its count of pages is ours.
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "1000000", "CUDA_VISIBLE_DEVICES": ""}


def measure_finalize(bench: Bench) -> Iterator[Row]:
    """Measure how long finalizing takes and how much memory it needs beyond the model, on the CPU."""
    for model in bench.some(_MODELS, "tiny"):
        numbers = ask("benchmarks.speed.surgery", model, **_ENVIRONMENT)
        title = "finalizing, proof included: extra memory at its peak / largest projection"
        yield {"what": title, "case": model, "ratio": [numbers["extra_mb"] / numbers["projection_mb"]] * 3, **numbers}


def measure_reload(bench: Bench) -> Iterator[Row]:
    """Time load_compact beside from_pretrained of the dense model."""
    for name in bench.some(_MODELS, "tiny"):
        model = _build(name)
        with tempfile.TemporaryDirectory() as folder:
            dense, compact = Path(folder) / "dense", Path(folder) / "compact"
            model.save_pretrained(dense)
            gating.save_compact(compact_copy(model, 0.25), compact)
            loader = BertForSequenceClassification if name != "llama-1b" else AutoModelForCausalLM
            calls = {
                "dense": lambda dense=dense, loader=loader: loader.from_pretrained(dense, dtype="auto"),
                "compact": lambda compact=compact: gating.load_compact(compact),
            }
            times = bench.times(calls, rounds=15, seconds=20)
        title, case = "load_compact / from_pretrained of the dense model", f"{name}, a quarter of the heads"
        yield row(title, case, times, "compact", "dense")


def _build(name: str) -> PreTrainedModel:
    """Build a model of a shape; the large one in bfloat16."""
    device = torch.device("cpu")
    if name == "llama-1b":
        return llama(LlamaConfig(**LLAMA_1B), device=device, dtype=torch.bfloat16).eval()
    return bert(name, device=device).eval()


def _remove_once(name: str) -> dict[str, float]:
    """Remove three quarters of a model's heads, with gates and the proof."""
    small = _build("tiny")
    model = _build(name)
    largest = max(
        linear.weight.numel() * linear.weight.element_size()
        for block in gating.find_attention_blocks(model)
        for linear in (*(linear for linear, _ in block.projections()), block.output_projection)
    )
    with torch.no_grad():
        # What torch and Python allocate once, at first use, is no part of it.
        model(**make_probe(model))
        gating.finalize(small, gating.inject_gates(small), num_heads=3)
    gates = gating.inject_gates(model)
    with torch.no_grad():
        gates.log_alpha.fill_(-9.0)[::4] = 9.0
        # Not quite open, so that its value is folded in.
        gates.log_alpha[0] = 1.0
    before = start_peak()
    start = time.perf_counter()
    gating.finalize(model, gates)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "extra_mb": (peak() - before) / 1e6, "projection_mb": largest / 1e6}


if __name__ == "__main__":
    print(json.dumps(_remove_once(*sys.argv[1:])))
