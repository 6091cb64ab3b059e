"""Memory of loading a model, sharded and whole, and memory and time of a removal, with its proof and without."""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from transformers import PreTrainedModel

import gating
from benchmarks.sharding.memory import in_use, local_bytes, peak, restart_peak, start_peak, storages
from benchmarks.sharding.models import batch_of, layer_bytes, load_sharded, load_whole, weights, whole_bytes
from benchmarks.sharding.processes import device
from gating.sharding import finalize_sharded, removal, reshard
from gating.sharding.copies import copy_sharded

Row = dict[str, Any]

# A small probe: the proof is to run the layers, not to fill the memory with outputs.
_PROBE = (1, 16)


def load(folder: str, warm_up: str, *, sharded: bool) -> Row:
    """Load a model in this process; return its bytes, and those above the start at the peak and afterwards."""
    for each in (warm_up, folder):
        torch.distributed.barrier()
        start = start_peak()
        model = load_sharded(each) if sharded else load_whole(each, device())
        with torch.no_grad():
            for weight in model.parameters():
                weight.fill_(0.0)  # As the first step does: on a CPU, weights are parts of the file until then.
        highest, held = peak() - start, in_use() - start
        model_bytes = whole_bytes(model.parameters())
        del model
    return {"model": model_bytes, "peak": highest, "held": held}


def remove(folder: str, warm_up: str, *, units: Sequence[Any], repeats: int) -> Row:
    """Remove half of the units of each block several times; return the medians of bytes and seconds.

    A small model loses units before: what torch and Python allocate once is no part of it.
    """
    _remove_once(warm_up, units)
    measured = [_remove_once(folder, units) for _ in range(repeats)]
    return {name: statistics.median_low([each[name] for each in measured]) for name in measured[0]}


def _remove_once(folder: str, units: Sequence[Any]) -> Row:
    # On a CPU, loaded weights are parts of the file, which stays in memory while one of them is there.
    model = copy_sharded(load_sharded(folder))
    gates = gating.inject_gates(model, units=units)
    kept = torch.cat([torch.arange(size) % 2 == 0 for size in gates.block_sizes]).to(device())
    probe = batch_of(model, *_PROBE, device(), seed=0)
    del probe["labels"]
    layer, shards = layer_bytes(model), local_bytes(weights(model))
    forward = _forward_peak(model, probe)
    torch.distributed.barrier()
    with _measured_cutting() as cutting:
        before = start_peak()
        start = time.perf_counter()
        compact, report = finalize_sharded(model, gates, kept=kept, probe=probe)
        seconds = time.perf_counter() - start
        highest = max(peak(), *cutting["peaks"])
    own = storages(weights(model))
    new = [tensor for address, tensor in storages(weights(compact)).items() if address not in own]
    with_both = in_use() - before
    del model, gates, own
    return {
        "layer": layer,
        "shards": shards,
        "peak_forward": forward,
        "new_shards": local_bytes(new),
        "peak": highest - before,
        "peak_removal": cutting["peaks"][1] - before,
        "held_with_both": with_both,
        "held_after": in_use() - before,
        "seconds": seconds,
        "seconds_removal": cutting["seconds"],
        "heads": report.num_heads / report.num_heads_before,
        "parameters": report.num_parameters / report.num_parameters_before,
    }


def _forward_peak(model: PreTrainedModel, probe: dict[str, Tensor]) -> int:
    """Return the bytes above the shards at the peak of one forward pass, in which FSDP2 gathers layers."""
    before = start_peak()
    with torch.no_grad():
        model.eval()(**probe)
    highest = peak() - before
    reshard(model)
    return highest


@contextmanager
def _measured_cutting() -> Iterator[Row]:
    """Measure the part of a removal between the two halves of its proof: the new model is cut, and the copy is made."""
    measured: Row = {}
    cut = removal._without_units

    def cut_measured(*arguments: Any) -> PreTrainedModel:
        measured["peaks"] = [peak()]
        restart_peak()
        start = time.perf_counter()
        compact = cut(*arguments)
        measured["seconds"] = time.perf_counter() - start
        measured["peaks"].append(peak())
        restart_peak()
        return compact

    removal._without_units = cut_measured
    try:
        yield measured
    finally:
        removal._without_units = cut
