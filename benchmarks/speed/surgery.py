"""Time and memory of whole runs, of finalizing and of reloading, in fresh processes."""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, BertForSequenceClassification, LlamaConfig, PreTrainedModel

import gating
from benchmarks.measuring import ask, run_python
from benchmarks.sharding.memory import peak, start_peak
from benchmarks.speed.shapes import LLAMA_1B, Bench, Row, Times, bert, compact_copy, llama, row
from gating.proof.probe import make_probe

_STAGES = ("search", "finalize", "recovery", "dense")
_MODELS = ["bert-base", "llama-1b"]
# Large blocks of memory go back to the system as they are freed, so that its count of pages is ours.
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "1000000", "CUDA_VISIBLE_DEVICES": ""}


def measure_runs(bench: Bench) -> Iterator[Row]:
    """Time the training of the embedded example for some steps, with its default objective and densely."""
    steps, rounds = (4, 2) if bench.quick else (60, 3)
    times: Times = {"budget": [], "none": []}
    for number in range(rounds):
        for objective in sorted(times, reverse=number % 2 == 1):
            with tempfile.TemporaryDirectory() as folder:
                settings = [f"objective={objective}", f"trainer.max_steps={steps}", f"output_dir={folder}/run"]
                # One validation at the end, not in the middle of what is timed.
                settings += ["logger=csv", "callbacks=none", "trainer.limit_val_batches=0"]
                settings += ["trainer=gpu"] if bench.device.type == "cuda" else []
                run_python("train.py", *settings)
                numbers = json.loads((Path(folder) / "run" / "metrics.json").read_text())
            times[objective].append(sum(numbers.get(f"seconds/{stage}", 0.0) for stage in _STAGES))
    title = "search, finalizing and recovery / dense training, train.py"
    yield row(title, f"embedded example, {steps} steps", times, "budget", "none", 1.0)


def measure_finalize(bench: Bench) -> Iterator[Row]:
    """Measure how long finalizing takes and how much memory it needs beyond the model, on the CPU."""
    for model in bench.some(_MODELS, "tiny"):
        for action, title in (("prune", "cutting"), ("finalize", "finalizing, proof included")):
            numbers = ask("benchmarks.speed.surgery", action, model, **_ENVIRONMENT)
            yield {
                "what": f"{title}: extra memory at its peak / largest projection",
                "case": model,
                "ratio": [numbers["extra_mb"] / numbers["projection_mb"]] * 3,
                # One copy, and a little for biases and for Python.
                "at_most": 1.1 if action == "prune" else None,
                **numbers,
            }


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
                "compact": lambda compact=compact: gating.load_compact(compact, verify=False),
                "verified": lambda compact=compact: gating.load_compact(compact),
            }
            times = bench.times(calls, rounds=15, seconds=20)
        case, dense_model = f"{name}, a quarter of the heads", "from_pretrained of the dense model"
        yield row(f"load_compact, verify=False / {dense_model}", case, times, "compact", "dense", 1.0)
        yield row(f"load_compact, checksums compared / {dense_model}", case, times, "verified", "dense")


def _build(name: str) -> PreTrainedModel:
    """Build a model of a shape; the large one in bfloat16."""
    device = torch.device("cpu")
    if name == "llama-1b":
        return llama(LlamaConfig(**LLAMA_1B), device=device, dtype=torch.bfloat16).eval()
    return bert(name, device=device).eval()


def _remove_once(action: str, name: str) -> dict[str, float]:
    """Remove three quarters of a model's heads: with gates and the proof, or by the bare cutting of `prune_heads`."""
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
    remove = _finalizing(model) if action == "finalize" else _pruning(model)
    before = start_peak()
    start = time.perf_counter()
    remove()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "extra_mb": (peak() - before) / 1e6, "projection_mb": largest / 1e6}


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


if __name__ == "__main__":
    print(json.dumps(_remove_once(*sys.argv[1:])))
