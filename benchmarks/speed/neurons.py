"""Gates on heads and neurons in training, and models that have lost both, beside dense models and built ones."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

import gating
from benchmarks.measuring import interleave, ratio
from benchmarks.speed.latency import built_bert, times_of
from benchmarks.speed.shapes import bert, compact_copy, kept_heads, llama, llama_1b_config, text_batch
from benchmarks.speed.training import RECOVERY, SEARCH, gated_step, plain_step

__all__ = ["measure_neurons"]

Row = dict[str, Any]

BOTH = ("heads", "neurons")
KEPT = 0.4
CASES = [
    ("minilm", 32, 32, "bf16"),
    ("minilm", 16, 32, "fp32"),
    ("minilm", 32, 128, "fp32"),
    ("bert-base", 8, 128, "fp32"),
]


def measure_neurons(device: torch.device, *, quick: bool) -> Iterator[Row]:
    """Time steps with gates on both, and compact models of both."""
    for shape, batch_size, length, precision in [("tiny", 4, 16, "fp32")] if quick else CASES:
        dense = bert(shape, device=device).train()
        batch = text_batch(dense, batch_size, length, labels=True)
        # Many tokens scale the weight of a down projection, few its input.
        steps = {
            "dense": plain_step(dense, batch, precision),
            "gated": gated_step(bert(shape, device=device).train(), batch, precision, units=BOTH),
            "input": gated_step(bert(shape, device=device).train(), batch, precision, _by_input, units=BOTH),
            "compact": plain_step(_without_neurons(compact_copy(dense, KEPT), KEPT), batch, precision),
        }
        # Five models of BERT-base take 22 s a round.
        times = interleave(steps, rounds=41, warm_up=2, budget_s=1 if quick else 150)
        pairs = zip(times["gated"], times["compact"], strict=True)
        times["whole"] = [SEARCH * gated + RECOVERY * compact for gated, compact in pairs]
        for name, title, goal in (
            ("gated", "step with gates on both / dense step", 1.03),
            ("input", "the same, gates scale the input / dense step", None),
            ("compact", f"recovery step with {KEPT:.0%} of both / dense step", 1.0),
            ("whole", "all steps of a run / dense steps", 0.9),
        ):
            case = f"{shape} {batch_size} x {length} {precision}"
            yield {"what": title, "case": case, "ratio": ratio(times, name, "dense"), "at_most": goal}
    yield from _measure_built(device, quick=quick)


def _measure_built(device: torch.device, *, quick: bool) -> Iterator[Row]:
    """Time compact models beside models that transformers builds with the same heads and widths."""
    shape, sizes = ("tiny", [(2, 16)]) if quick else ("bert-base", [(1, 32), (8, 128)])
    dense = bert(shape, device=device).eval()
    compact = _without_neurons(compact_copy(dense, KEPT), KEPT)
    built = built_bert(dense, kept_heads(dense, KEPT))
    for layer, block in zip(built.bert.encoder.layer, gating.find_feed_forward_blocks(compact), strict=True):
        layer.intermediate.dense = nn.Linear(dense.config.hidden_size, block.num_neurons, device=device)
        layer.output.dense = nn.Linear(block.num_neurons, dense.config.hidden_size, device=device)
    layers: dict[str, Any] = {"num_hidden_layers": 2 if quick else 4, "vocab_size": 1000}
    if quick:
        layers |= {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4}
    whole = llama(llama_1b_config(**layers), device=device).eval()
    half = whole.config.intermediate_size // 2
    narrow = llama(llama_1b_config(**{**layers, "intermediate_size": half}), device=device).eval()
    groups = range(half // 64, whole.config.intermediate_size // 64)
    gating.prune_neurons(whole, dict.fromkeys(range(whole.config.num_hidden_layers), groups))
    for case, one, other in ((f"{shape} {KEPT:.0%} of both", compact, built), ("llama 50% of neurons", whole, narrow)):
        for batch_size, length in sizes:
            batch = text_batch(one, batch_size, length)
            times = times_of({"compact": one, "built": other.eval()}, batch, rounds=61, budget_s=1 if quick else 30)
            row = {"what": "compact / built with these widths", "case": f"{case} {batch_size} x {length}"}
            yield row | {"ratio": ratio(times, "compact", "built"), "at_most": 1.02}


def _without_neurons(model: PreTrainedModel, share: float) -> PreTrainedModel:
    """Remove groups of neurons, unevenly over the layers, in place."""
    generator = torch.Generator().manual_seed(0)
    removed = {}
    for block in gating.find_feed_forward_blocks(model, group_size=16):
        number = len(block.group_ids)
        most = 1 - share + 0.2 * (float(torch.rand((), generator=generator)) - 0.5)
        order = torch.randperm(number, generator=generator).tolist()
        removed[block.name] = order[: min(number - 1, round(most * number))]
    gating.prune_neurons(model, removed, group_size=16)
    return model


def _by_input(gates: gating.HeadGates) -> None:
    """Scale the input of every down projection, as of output projections."""
    assert gates.attachment is not None
    handles = gates.attachment.gate_handles
    for index, block in enumerate(gates.blocks()):
        handles[index].remove()
        gate: Callable[..., Any] = block.output_projection.gate
        handles[index] = block.hook_features(gate)
