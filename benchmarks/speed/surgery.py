"""Time and memory of finalizing and reloading, each in a fresh process.

python -m benchmarks.speed.surgery finalize bert-base
python -m benchmarks.speed.surgery prune bert-base
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BertForSequenceClassification, PreTrainedModel

import gating
from benchmarks.measuring import ROOT, interleave, ratio
from benchmarks.speed.shapes import bert, compact_copy, llama, llama_1b_config
from gating.proof.probe import make_probe

__all__ = ["measure_finalize", "measure_reload"]

Row = dict[str, Any]

MODELS = ("bert-base", "llama-1b")
QUICK_MODELS = ("tiny",)


def measure_finalize(_device: torch.device, *, quick: bool) -> Iterator[Row]:
    """Measure how long finalizing takes and how much memory it needs beyond the model, on the CPU."""
    for model in QUICK_MODELS if quick else MODELS:
        for action, title in (("prune", "cutting"), ("finalize", "finalizing, proof included")):
            numbers = _in_fresh_process(action, model)
            yield {"what": f"{title}: extra memory at its peak / largest projection", "case": model} | {
                "ratio": [numbers["extra_mb"] / numbers["projection_mb"]] * 3,
                # One copy, and a little for biases and for Python.
                "at_most": 1.1 if action == "prune" else None,
                **numbers,
            }


def _in_fresh_process(action: str, model: str) -> dict[str, float]:
    # Large blocks of memory go back to the system as they are freed, so that its count of pages is ours.
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "benchmarks.speed.surgery", action, model]
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=True)
    numbers: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def measure_reload(_device: torch.device, *, quick: bool) -> Iterator[Row]:
    """Time load_compact beside from_pretrained of the dense model."""
    for name in QUICK_MODELS if quick else MODELS:
        model = build(name)
        with tempfile.TemporaryDirectory() as folder:
            dense, compact = Path(folder) / "dense", Path(folder) / "compact"
            model.save_pretrained(dense)
            gating.save_compact(compact_copy(model, 0.25), compact)
            loader = BertForSequenceClassification if name != "llama-1b" else AutoModelForCausalLM
            calls = {
                "dense": lambda dense=dense, loader=loader: loader.from_pretrained(dense, dtype="auto"),
                "compact": lambda compact=compact: gating.load_compact(compact, verify=False),
                "verified": lambda compact=compact: gating.load_compact(compact),
            }
            times = interleave(calls, rounds=15, warm_up=1, budget_s=1 if quick else 20)
        case = f"{name}, a quarter of the heads"
        for call, title, at_most in (("compact", "verify=False", 1.0), ("verified", "checksums compared", None)):
            what = f"load_compact, {title} / from_pretrained of the dense model"
            yield {"what": what, "case": case, "ratio": ratio(times, call, "dense"), "at_most": at_most}


def build(name: str) -> PreTrainedModel:
    """Build a model of a shape; the large one in bfloat16."""
    device = torch.device("cpu")
    if name == "llama-1b":
        return llama(llama_1b_config(), device=device, dtype=torch.bfloat16).eval()
    return bert(name, device=device).eval()


def remove_once(name: str, *, proof: bool) -> dict[str, float]:
    """Remove three quarters of a model's heads: with gates and the proof, or the bare cutting of `prune_heads`."""
    small = build("tiny")
    model = build(name)
    largest = max(
        linear.weight.numel() * linear.weight.element_size()
        for block in gating.find_attention_blocks(model)
        for linear in (*(linear for linear, _ in block.projections()), block.output_projection)
    )
    with torch.no_grad():
        # What torch and Python allocate once, at first use, is no part of it.
        model(**make_probe(model))
        gating.finalize(small, gating.inject_gates(small), num_heads=3)
    remove = _finalizing(model) if proof else _pruning(model)
    before = _restart_peak()
    start = time.perf_counter()
    remove()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "extra_mb": (_peak() - before) / 1e6, "projection_mb": largest / 1e6}


def _pruning(model: PreTrainedModel) -> Callable[[], object]:
    blocks = gating.find_attention_blocks(model)
    size = blocks[0].num_heads // blocks[0].num_key_value_heads
    removed = {b.name: [i for i in b.head_ids if i // size % 4 != n % 4] for n, b in enumerate(blocks)}
    return lambda: gating.prune_heads(model, removed)


def _finalizing(model: PreTrainedModel) -> Callable[[], object]:
    gates = gating.inject_gates(model)
    with torch.no_grad():
        gates.log_alpha.fill_(-9.0)[::4] = 9.0
        # Not quite open, so that its value is folded in.
        gates.log_alpha[0] = 1.0
    return lambda: gating.finalize(model, gates)


def _restart_peak() -> int:
    """Let the system count the peak anew, and return the memory in use now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    print(json.dumps(remove_once(sys.argv[2], proof=sys.argv[1] == "finalize")))
