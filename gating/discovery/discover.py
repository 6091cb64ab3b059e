"""Discovery of the layouts of attention and feed-forward blocks that the registries lack.

A candidate for attention has projections with common names, a common name for the width of a head, and an output
projection with an input of a multiple of that width. One for a feed-forward block has layers from one width to another
and back. Structure does not determine the order of rows in fused projections, or the assumptions of a ``forward``. Each
candidate layout is therefore tried on the model: it is accepted if the outputs after a removal equal those with masked
units, and the removal is undone.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from gating.discovery.refusals import sort_blocks, why_not_attention
from gating.discovery.ungated import unknown_feed_forward
from gating.errors import InputError
from gating.families.layouts import AttentionSpec, RowLayout, num_inputs, num_outputs
from gating.families.registry import find_spec, linear_at
from gating.proof.conditions import check_no_adapters
from gating.proof.outputs import OUT_OF_MEMORY
from gating.proof.probe import run_probe
from gating.proof.prove import try_removal
from gating.structure.attention import AttentionBlock, iter_attention_blocks
from gating.structure.blocks import Block
from gating.structure.feed_forward import FeedForwardBlock, iter_feed_forward_blocks
from gating.units import UnitName

_TRIPLES = [
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q", "k", "v"),
    ("q_lin", "k_lin", "v_lin"),
    ("query_proj", "key_proj", "value_proj"),
    ("linear_q", "linear_k", "linear_v"),
    ("to_q", "to_k", "to_v"),
    ("wq", "wk", "wv"),
]
_FUSED = ["qkv", "Wqkv", "qkv_proj", "query_key_value", "c_attn", "in_proj", "att_proj", "W_pack"]
# Fused rows, with as many key-value heads as query heads and with fewer of them.
_FUSED_LAYOUTS: dict[bool, tuple[RowLayout, RowLayout]] = {False: ("qkv", "hqkv"), True: ("qkv", "gqkv")}
_OUTPUTS = ["o_proj", "out_proj", "dense", "o", "out_lin", "c_proj", "Wo", "proj", "projection", "linear_out", "wo"]
_HEAD_DIMS = ["head_dim", "attention_head_size", "head_size", "key_value_proj_dim", "d_head", "dim_head", "d_k"]
_WIDTHS = ("all_head_size", "inner_dim", "split_size")

# The layouts that modules could have, the likeliest first.
Guesses = Mapping[nn.Module, Sequence[Any]]


def discover_layouts(
    model: nn.Module, unit: UnitName, *, probe: Mapping[str, Tensor] | None = None
) -> dict[nn.Module, str]:
    """Set the spec of the modules that look like blocks with a unit and have no spec yet, in place.

    Candidate layouts are tried on the probe, or on a batch that is made for the model. Of two feed-forward blocks in
    one module, only one is found. Return the reasons for modules that look like such a block although all layouts fail.
    """
    if unit == "neurons":
        guesses: Guesses = {module: specs for _, module, specs in unknown_feed_forward(model)}
        return _settle(model, guesses, _try_neurons, attribute="feed_forward_spec", probe=probe)
    modules = dict(model.named_modules())
    guesses = {
        module: list(_guess_attention(module, modules[name.rpartition(".")[0]]))
        for name, module in modules.items()
        if find_spec(module) is None and why_not_attention(module) is None
    }
    return _settle(model, guesses, _try_heads, attribute="attention_spec", probe=probe)


@torch.inference_mode(mode=False)  # Weights that are put back as inference tensors could not be trained.
def _settle(
    model: nn.Module,
    guesses: Guesses,
    try_some: Callable[..., None],
    *,
    attribute: str,
    probe: Mapping[str, Tensor] | None,
) -> dict[nn.Module, str]:
    """Give each module the first of its layouts with which a removal equals masking; return the problems of others."""
    guesses = {module: specs for module, specs in guesses.items() if specs}
    if not guesses:
        return {}
    check_no_adapters(model)
    # Here, so that a model that does not run at all is one error, not one for each candidate.
    batch, _ = run_probe(model, probe)
    problems: dict[nn.Module, str] = {}
    for modules in _alike(model, guesses):
        problem = _choose(model, modules, guesses[modules[0]], try_some, attribute, batch)
        problems |= dict.fromkeys(modules, problem) if problem else {}
    return problems


def _alike(model: nn.Module, guesses: Guesses) -> list[list[nn.Module]]:
    """Return the modules that are tried together: those of a class with the same guesses."""
    groups: dict[object, list[nn.Module]] = {}
    for name, module in model.named_modules():
        if module in guesses:
            is_container = type(module).__module__.startswith("torch.")
            # Containers in other places hold other layers.
            place = re.sub(r"\d+", "*", name) if is_container else ""
            groups.setdefault((type(module), place, tuple(guesses[module])), []).append(module)
    return list(groups.values())


def _choose(
    model: nn.Module,
    modules: Sequence[nn.Module],
    specs: Sequence[Any],
    try_some: Callable[..., None],
    attribute: str,
    probe: Mapping[str, Tensor],
) -> str | None:
    """Give some modules the first spec that stands a trial; return the problem of the likeliest if none does."""
    problem = ""
    for spec in specs:
        try:
            _assign(modules, attribute, spec)
            try_some(model, modules, probe)
            return None
        except BaseException as error:  # A wrong layout may fail in any way before it is tried.
            for module in modules:
                delattr(module, attribute)
            if not isinstance(error, Exception) or isinstance(error, OUT_OF_MEMORY):
                raise
            problem = problem or (str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}")
    return f"discover=True found it, but {problem[0].lower()}{problem[1:].rstrip('.')}"


def _assign(modules: Sequence[nn.Module], attribute: str, spec: object) -> None:
    for module in modules:
        setattr(module, attribute, spec)


def _own(blocks: Iterator[Any], modules: Sequence[nn.Module]) -> list[Any]:
    """Return the blocks of some modules; raise ``InputError`` if one of them cannot lose units."""
    usable, refused = sort_blocks([block for block in blocks if block.module in modules])
    for _, reason in refused:
        raise InputError(reason)
    return usable


def _try_heads(model: nn.Module, modules: Sequence[nn.Module], probe: Mapping[str, Tensor]) -> None:
    """Remove some heads, compare with masking them, and undo the removal; find out whether a block may lose all."""
    # The first heads tell layouts apart: values of the last ones are at the end of a fused projection in all layouts.
    blocks: list[AttentionBlock] = _own(iter_attention_blocks(model), modules)
    # Removing a single group would empty the block; its first query head is enough.
    sizes = [block.queries_per_key if block.num_key_value_heads > 1 else 1 for block in blocks]
    kept = {block.name: block.head_slots[size:] for block, size in zip(blocks, sizes, strict=True)}
    try_removal(model, blocks, kept, probe=probe)
    try:
        try_removal(model, blocks, {block.name: () for block in blocks}, probe=probe)
    except OUT_OF_MEMORY:
        raise
    except Exception:  # It returns something else than an emptied block does.
        _assign(modules, "attention_spec", replace(blocks[0].spec, returns="other"))


def _try_neurons(model: nn.Module, modules: Sequence[nn.Module], probe: Mapping[str, Tensor]) -> None:
    """Remove every other neuron, compare with masking them, and undo the removal."""
    # What neurons have in common, such as their mean or their largest value, differs without half of them.
    found: list[FeedForwardBlock] = _own(iter_feed_forward_blocks(model), modules)
    blocks: list[Block] = [block.regrouped(1) for block in found]
    try_removal(model, blocks, {block.name: block.unit_ids[1::2] for block in blocks}, probe=probe)


def _guess_attention(module: nn.Module, parent: nn.Module) -> Iterator[AttentionSpec]:
    """Yield candidate specs of a module, the simplest first; none if it does not look like attention."""
    head_dim_name = next((name for name in _HEAD_DIMS if isinstance(getattr(module, name, None), int)), None)
    output_path = next((name for name in _OUTPUTS if linear_at(module, name)), None)
    if output_path is None and linear_at(parent, "output.dense"):
        output_path = "^output.dense"
    if head_dim_name is None or output_path is None:
        return
    head_dim = max(1, getattr(module, head_dim_name))
    output = (parent if output_path.startswith("^") else module).get_submodule(output_path.removeprefix("^"))
    num_heads, rest = divmod(num_inputs(output), head_dim)
    projections = list(_guess_projections(module, num_heads, head_dim)) if num_heads and not rest else []
    embed_dim = [(), ("embed_dim",)] if hasattr(module, "embed_dim") else [()]
    config = [(), ("num_attention_heads",)] if hasattr(module, "config") else [()]
    for laid_out, widths, counts in product(projections, embed_dim, config):
        yield AttentionSpec(
            laid_out,
            output_path,
            head_dim=head_dim_name,
            returns="context" if output_path.startswith("^") else "pair",
            head_widths=(*_WIDTHS, *widths),
            config_counts=counts,
        )


def _guess_projections(module: nn.Module, num_heads: int, head_dim: int) -> Iterator[tuple[tuple[str, RowLayout], ...]]:
    for query, key, value in _TRIPLES:
        if all(linear_at(module, name) for name in (query, key, value)):
            rows = [num_outputs(module.get_submodule(name)) for name in (query, key, value)]
            groups = rows[1] // head_dim
            is_whole = rows == [num_heads * head_dim, groups * head_dim, groups * head_dim]
            if is_whole and groups and num_heads % groups == 0:
                yield (query, "q"), (key, "k"), (value, "v")
            return
    for name in _FUSED:
        if linear_at(module, name):
            groups, rest = divmod(num_outputs(module.get_submodule(name)) - num_heads * head_dim, 2 * head_dim)
            if groups > 0 and rest == 0 and num_heads % groups == 0:
                for layout in _FUSED_LAYOUTS[groups < num_heads]:
                    yield ((name, layout),)
            return
