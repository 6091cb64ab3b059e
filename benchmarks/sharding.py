"""Measure the removal of heads and neurons from models that are cut over two processes (FSDP2): memory and time.

    python -m benchmarks.sharding            about ten minutes on two cores, 16 GB of memory
    python -m benchmarks.sharding --quick    a tiny model, to see that it works; nothing is written

Models are LLaMA-like with random weights in single precision; the largest has the layers of TinyLlama 1.1B, and a small
vocabulary. Each process has a GPU where there are two (NCCL), and the CPU elsewhere (gloo). Memory of the CPU is
counted by Linux. Results are in benchmarks/results/sharding.jsonl, with a value of each process.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

import gating
from benchmarks import records
from benchmarks.measuring import RESULTS, machine, run_python
from benchmarks.peaks import MALLOC, MIB, local_bytes, peak, start_peak, storages
from benchmarks.speed.shapes import llama
from gating.models.sources import Pretrained, make_meta_model
from gating.sharding import finalize_sharded, reshard
from gating.sharding.copies import copy_sharded
from gating.tracking.verbosity import quiet_libraries

Row = dict[str, Any]

OUTPUT = RESULTS / "sharding.jsonl"
PROCESSES = 2
# Width, number of layers, and how often a removal is repeated.
SHAPES = ((256, 4, 3), (512, 8, 3), (1024, 16, 1), (2048, 22, 1))
QUICK = ((192, 2, 1),)
_WARM_UP = (128, 2)
_HEAD_WIDTH, _VOCABULARY = 64, 4096
_UNITS: list[Any] = ["heads", "neurons"]
# A small probe: the proof is to run the layers, not to fill the memory with outputs.
_PROBE = (1, 16)
# Training keeps gradients and both moments of AdamW besides the parameters.
_STATE = 4


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sharding", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model; nothing is written")
    # Of the processes that this one starts: they remove, and write their numbers here.
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        _work(*options.worker)
        return
    disable_progress_bar()
    rows = list(measure(QUICK if options.quick else SHAPES))
    if not options.quick:
        records.write(OUTPUT, rows)
    print("\n".join(table(rows)))


def measure(shapes: Sequence[tuple[int, int, int]]) -> Iterator[Row]:
    """Yield a result for each model, which has processes of its own: a list with a value of each of them."""
    on_gpus = torch.cuda.is_available() and torch.cuda.device_count() >= PROCESSES
    environment = MALLOC if on_gpus else {**MALLOC, "CUDA_VISIBLE_DEVICES": ""}
    facts = machine()
    facts["gpu"] = facts["gpu"] if on_gpus else None
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    with tempfile.TemporaryDirectory(prefix="head-gating-sharding-") as name:
        small, folder = Path(name) / "small", Path(name)
        _save(small, *_WARM_UP)
        for hidden, layers, repeats in shapes:
            model = folder / f"{hidden}-{layers}"
            _save(model, hidden, layers)
            worker = ["--worker", str(folder), str(small), str(model), str(repeats)]
            run_python(*launch, "-m", "benchmarks.sharding", *worker, threads=1, **environment)
            ranks = [json.loads((folder / f"values-{rank}").read_text()) for rank in range(PROCESSES)]
            values = {name: [rank[name] for rank in ranks] for name in ranks[0]}
            yield {"hidden": hidden, "layers": layers, "processes": PROCESSES, **values, **facts}


def table(rows: Sequence[Row]) -> list[str]:
    """Return a line for each model: its shards, and the memory and the time of the removal with its proof."""
    lines = []
    for row in rows:
        beyond = max(peak - new for peak, new in zip(row["peak"], row["new_shards"], strict=True))
        of_state = max((own + peak) / (_STATE * own) for own, peak in zip(row["shards"], row["peak"], strict=True))
        lines.append(
            {
                "model": f"{row['hidden']} wide, {row['layers']} layers",
                "shards, MiB": max(row["shards"]) / MIB,
                "new shards, MiB": max(row["new_shards"]) / MIB,
                "peak beyond both, layers": beyond / row["layer"][0],
                "one forward pass, layers": max(row["peak_forward"]) / row["layer"][0],
                "shards and peak / training state": f"{of_state:.2f}",
                "seconds": f"{max(row['seconds']):.1f}",
            }
        )
    return [*records.machines(rows), records.markdown(lines)]


def _save(folder: Path, hidden: int, layers: int) -> None:
    """Save a random model; with a width of 2048 and 22 layers, it has the shape of TinyLlama 1.1B, but few tokens."""
    heads = hidden // _HEAD_WIDTH
    config = LlamaConfig(
        hidden_size=hidden,
        # A multiple of 64 near TinyLlama's 5632 / 2048 of the width.
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 8),
        vocab_size=_VOCABULARY,
        tie_word_embeddings=False,
    )
    llama(config, device=torch.device("cpu")).save_pretrained(folder)


def _work(folder: str, small: str, model: str, repeats: str) -> None:
    """Remove half of the units of each block several times, and write the medians of bytes and seconds.

    A small model loses units before: what torch and Python allocate once is no part of it.
    """
    quiet_libraries()
    if torch.cuda.is_available():
        torch.cuda.set_device(_device())
    torch.distributed.init_process_group(torch.distributed.get_default_backend_for_device(_device()))
    _remove_once(small)
    measured = [_remove_once(model) for _ in range(int(repeats))]
    values = {name: statistics.median_low([each[name] for each in measured]) for name in measured[0]}
    (Path(folder) / f"values-{os.environ['RANK']}").write_text(json.dumps(values))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _remove_once(folder: str) -> Row:
    source = Pretrained(folder)
    # On a CPU, loaded weights are parts of the file, which stays in memory while one of them is there.
    model = copy_sharded(source.load_sharded(AutoModelForCausalLM, make_meta_model(source, AutoModelForCausalLM)))
    gates = gating.inject_gates(model, units=_UNITS)
    kept = torch.cat([torch.arange(size) % 2 == 0 for size in gates.block_sizes]).to(_device())
    tokens = torch.randint(5, _VOCABULARY, _PROBE, generator=torch.Generator().manual_seed(0))
    probe = {"input_ids": tokens.to(_device())}
    layer = sum(tensor.numel() * tensor.element_size() for tensor in model.model.layers[0].parameters())
    shards, forward = local_bytes(_weights(model)), _forward_peak(model, probe)
    torch.distributed.barrier()
    before, start = start_peak(), time.perf_counter()
    compact, _ = finalize_sharded(model, gates, kept=kept, probe=probe)
    seconds, highest = time.perf_counter() - start, peak()
    own = storages(_weights(model))
    new = [tensor for address, tensor in storages(_weights(compact)).items() if address not in own]
    return {
        "layer": layer,
        "shards": shards,
        "peak_forward": forward,
        "new_shards": local_bytes(new),
        "peak": highest - before,
        "seconds": seconds,
    }


def _forward_peak(model: PreTrainedModel, probe: dict[str, Tensor]) -> int:
    """Return the bytes above the shards at the peak of one forward pass, in which FSDP2 gathers layers."""
    before = start_peak()
    with torch.no_grad():
        model.eval()(**probe)
    highest = peak() - before
    reshard(model)
    return highest


def _device() -> torch.device:
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")


def _weights(model: PreTrainedModel) -> Iterator[Tensor]:
    """Yield the parameters of a model, without its gates."""
    gates = {id(parameter) for parameter in model.head_gates.parameters()} if hasattr(model, "head_gates") else set()
    return (parameter for parameter in model.parameters() if id(parameter) not in gates)


if __name__ == "__main__":
    main()
