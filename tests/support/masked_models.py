"""Compact models of every family, beside the outputs of the same models with masked heads."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import gating
from gating.discovery.probe import forward_outputs, make_probe
from tests.support.family_models import Family


def compact(
    family: Family, seed: int | None, *, implementation: str | None = None, group_queries: bool = False
) -> tuple[PreTrainedModel, list[Tensor], dict[str, Tensor]]:
    """Build a model, mask it, remove its masked heads; return it with the masked outputs and the batch."""
    model = family.build(implementation)
    probe = make_probe(model)
    gates = gating.inject_gates(model, group_queries=group_queries)
    pattern = make_pattern(gates, seed)
    with gates.fixed_at(pattern):
        masked = forward_outputs(model, probe)
    prune(model, gates, pattern)
    return model, masked, probe


def prune(model: PreTrainedModel, gates: gating.HeadGates, pattern: Tensor) -> None:
    closed = {}
    blocks = {block.name: block for block in gating.find_attention_blocks(model)}
    for name, values in zip(gates.block_names, pattern.split(gates.block_sizes), strict=True):
        heads = values.repeat_interleave(blocks[name].num_heads // len(values))
        closed[name] = (heads == 0).nonzero().flatten().tolist()
    gates.remove()
    gating.prune_heads(model, closed)


def check_gradients(model: PreTrainedModel, probe: dict[str, Tensor]) -> None:
    outputs = [value for value in model(**probe).values() if isinstance(value, Tensor) and value.requires_grad]
    sum(value.float().pow(2).mean() for value in outputs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def generate_all(model: PreTrainedModel, probe: dict[str, Tensor], ways: dict[str, dict[str, Any]]) -> dict[str, Any]:
    inputs = {key: value for key, value in probe.items() if not key.startswith("decoder_")}
    return {
        way: model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, **arguments).tolist()
        for way, arguments in ways.items()
    }


def check_generation(family: Family, seed: int | None, *, implementation: str, group_queries: bool) -> None:
    ways: dict[str, dict[str, Any]] = {"greedy": {}, "beams": {"num_beams": 2}, "no cache": {"use_cache": False}}
    if family.static_cache:
        ways["static"] = {"cache_implementation": "static"}
    model = family.build(implementation)
    probe = make_probe(model)
    gates = gating.inject_gates(model, group_queries=group_queries)
    pattern = make_pattern(gates, seed)
    with gates.fixed_at(pattern):
        masked = generate_all(model, probe, ways)
    assert masked["greedy"] == masked["no cache"]
    prune(model, gates, pattern)
    assert generate_all(model, probe, ways) == masked


def make_pattern(gates: gating.HeadGates, seed: int | None) -> Tensor:
    """Return a zero or one for every gate: at random, but one block is empty and one full.

    Which blocks those are follows from the seed; seed 0 empties the first one, the place where caches are read. The
    pattern called None closes everything.
    """
    if seed is None:
        return torch.zeros(sum(gates.block_sizes))
    generator = torch.Generator().manual_seed(seed)
    pattern = (torch.rand(sum(gates.block_sizes), generator=generator) < 0.5).float()
    by_block = pattern.split(gates.block_sizes)
    by_block[seed % len(by_block)].zero_()
    by_block[(seed + 1) % len(by_block)].fill_(1.0)
    return pattern
