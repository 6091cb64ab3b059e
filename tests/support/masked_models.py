"""Compact models of every family, beside the outputs of the same models with masked heads and neurons."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

import gating
from gating.proof.outputs import forward_outputs
from gating.proof.probe import make_probe
from gating.proof.prove import factors_of, features_scaled
from gating.structure.blocks import Block
from gating.structure.feed_forward import FeedForwardBlock
from tests.support.family_models import Family
from tests.support.versions import OLDER

Units = Literal["heads", "neurons"] | Collection[Literal["heads", "neurons"]]

# Masked and compact models add the same numbers in another order.
TOLERANCE = 1e-5
# Of the 48 neurons of most families: 6 groups, which most random patterns keep some of; 48; 7, the last one smaller.
GROUP_SIZES = (8, 1, 7)
GROUP_SIZES_OF_EXPERTS = (8, 16, 32)


def group_sizes(family: Family) -> tuple[int, int, int]:
    """Return three sizes of groups: one that divides the width, a special one, and one that does not divide it."""
    has_experts = any("expert" in key for key in family.arguments)
    return GROUP_SIZES_OF_EXPERTS if has_experts else GROUP_SIZES


def units_masked(blocks: Sequence[Block], kept: Mapping[str, Collection[int]]) -> AbstractContextManager[None]:
    """Set the features of all units except the kept ones to zero inside a ``with`` block.

    Args:
        blocks: The blocks to mask.
        kept: For the name of each block, the original numbers of the units (heads, groups of neurons) to keep.
    """
    return features_scaled(blocks, factors_of(blocks, kept))


def gated(
    family: Family,
    seed: int | None,
    implementation: str | None,
    *,
    group_queries: bool = False,
    units: Units = "heads",
    group_size: int = GROUP_SIZES[0],
) -> tuple[PreTrainedModel, gating.HeadGates, Tensor]:
    """Build a model and put gates on it; return it with them and a pattern of their values."""
    model = family.build(implementation)
    gates = gating.inject_gates(model, group_queries=group_queries, units=units, group_size=group_size)
    return model, gates, make_pattern(gates, seed)


def compact(
    family: Family, seed: int | None, *, implementation: str | None = None, **options: Any
) -> tuple[PreTrainedModel, list[Tensor], dict[str, Tensor]]:
    """Build a model, mask it, remove its masked units; return it with the masked outputs and the batch."""
    model, gates, pattern = gated(family, seed, implementation, **options)
    probe = family.make_batch(model)
    with gates.fixed_at(pattern):
        masked = forward_outputs(model, probe)
    prune(model, gates, pattern)
    return model, masked, probe


def finalized(
    family: Family, seed: int, *, units: Units, group_size: int = GROUP_SIZES[0]
) -> tuple[PreTrainedModel, list[Tensor], dict[str, Tensor]]:
    """Build a model with some gates closed and others partly open, remove the gates; return it as :func:`compact`."""
    model = family.build()
    probe = make_probe(model)
    gates = gating.inject_gates(model, units=units, group_size=group_size)
    close_some(gates, seed)
    masked = forward_outputs(model, probe)
    gating.finalize(model, gates, probe=probe)
    return model, masked, probe


def prune(model: PreTrainedModel, gates: gating.HeadGates, pattern: Tensor) -> None:
    """Remove the gates, and the units whose entry of a pattern is zero."""
    heads, neurons = {}, {}
    group_size = None
    for block, values in zip(gates.blocks(), pattern.split(gates.block_sizes), strict=True):
        is_closed = values.repeat_interleave(len(block.unit_ids) // len(values)) == 0
        closed = is_closed.nonzero().flatten().tolist()
        if isinstance(block, FeedForwardBlock):
            neurons[block.name], group_size = closed, block.group_size
        else:
            heads[block.name] = closed
    gates.remove()
    if heads:
        gating.prune_heads(model, heads)
    if neurons:
        gating.prune_neurons(model, neurons, group_size=group_size)


def check_gradients(model: PreTrainedModel, probe: dict[str, Tensor]) -> None:
    run_backward(model, probe)
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def without_gradient(model: PreTrainedModel, probe: dict[str, Tensor]) -> set[str]:
    """Return the names of the parameters that a backward pass does not reach, which would stop distributed training."""
    run_backward(model, probe)
    return {name for name, parameter in model.named_parameters() if parameter.grad is None}


def run_backward(model: PreTrainedModel, probe: dict[str, Tensor]) -> None:
    outputs = [value for value in model(**probe).values() if isinstance(value, Tensor) and value.requires_grad]
    sum(value.float().pow(2).mean() for value in outputs).backward()


def generate_all(model: PreTrainedModel, probe: dict[str, Tensor], ways: dict[str, dict[str, Any]]) -> dict[str, Any]:
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    generated = {}
    for way, arguments in ways.items():
        # Copies: BLIP writes into its batch.
        inputs = {key: value.clone() for key, value in probe.items() if not key.startswith("decoder_")}
        try:
            generated[way] = model.generate(**inputs, **options, **arguments).tolist()
        except KeyError as error:
            # Transformers 5.10 makes no masks of static caches for linear attention.
            if not OLDER or way != "static" or error.args != ("linear_attention",):
                raise
    return generated


def check_generation(family: Family, seed: int | None, *, implementation: str | None = None, **options: Any) -> None:
    model, gates, pattern = gated(family, seed, implementation, **options)
    probe, ways = make_probe(model), ways_to_generate(family, all_ways=True)
    with gates.fixed_at(pattern):
        masked = generate_all(model, probe, ways)
    assert masked["greedy"] == masked["no cache"]
    prune(model, gates, pattern)
    assert generate_all(model, probe, ways) == masked


def ways_to_generate(family: Family, *, all_ways: bool = False) -> dict[str, dict[str, Any]]:
    """Return the arguments of ``generate`` by the names of the ways in which a family is compared, if it generates."""
    if not family.generates:
        return {}
    if OLDER and family.model == "CpmAntForCausalLM":  # whose dense model does not run on its cache
        return {"greedy": {"use_cache": False}, "no cache": {"use_cache": False}}
    ways: dict[str, dict[str, Any]] = {"greedy": {}}
    if family.implementations:
        ways |= {"no cache": {"use_cache": False}}
    if family.implementations and all_ways:
        ways |= {"beams": {"num_beams": 2}}
        ways |= {"static": {"cache_implementation": "static"}} if family.static_cache else {}
    return ways


def close_some(gates: gating.HeadGates, seed: int) -> None:
    """Close the gates of a pattern, and open the others partly."""
    is_open = make_pattern(gates, seed) > 0
    with torch.no_grad():
        noise = torch.randn(is_open.shape, generator=torch.Generator().manual_seed(seed))
        gates.log_alpha.copy_(torch.where(is_open, noise, -9.0))


def make_pattern(gates: gating.HeadGates, seed: int | None) -> Tensor:
    """Return a zero or one for every gate: at random, but of each kind of units, one block in a tower is empty.

    Of more than two blocks, another one is full. Which blocks those are follows from the seed; seed 0 empties the first
    one, the place where caches are read. Blocks that need a head keep one. The pattern called None closes everything.
    """
    blocks = gates.blocks()
    generator = torch.Generator().manual_seed(seed or 0)
    pattern = (torch.rand(sum(gates.block_sizes), generator=generator) < 0.5).float()
    groups: dict[object, list[Tensor]] = {}
    for block, values in zip(blocks, pattern.split(gates.block_sizes), strict=True):
        groups.setdefault((isinstance(block, FeedForwardBlock), block.tower), []).append(values)
    for values in groups.values():
        if len(values) > 2 and seed is not None:
            values[(seed + 1) % len(values)].fill_(1.0)
        for one in values if seed is None else [values[seed % len(values)]]:
            one.zero_()
    for block, values in zip(blocks, pattern.split(gates.block_sizes), strict=True):
        if getattr(block.spec, "returns", None) == "unknown" and not values.any():
            values[0] = 1.0
    return pattern
