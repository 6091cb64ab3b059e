"""Put gates on the attention heads of a model, and on its feed-forward neurons."""

import warnings
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gating.discovery.find import search_blocks
from gating.discovery.ungated import (
    UngatedModules,
    check_towers,
    is_left_out,
    ungated_warning,
    without_left_out,
)
from gating.errors import InputError
from gating.families.layouts import without_adapter
from gating.gates import hard_concrete
from gating.gates.attachment import CHILD_NAME, check_not_gated
from gating.gates.gates import HeadGates
from gating.proof.conditions import part_of_transformers
from gating.proof.probe import run_probe
from gating.proof.prove import try_removal
from gating.structure.blocks import Block
from gating.structure.feed_forward import DEFAULT_GROUP_SIZE
from gating.units import UNITS, UnitName, check_units


@torch.inference_mode(mode=False)  # Inference tensors could not be trained.
def inject_gates(
    model: nn.Module,
    *,
    units: UnitName | Collection[UnitName] = "heads",
    group_size: int = DEFAULT_GROUP_SIZE,
    temperature: float = hard_concrete.DEFAULT_TEMPERATURE,
    stretch_limits: tuple[float, float] = hard_concrete.DEFAULT_STRETCH_LIMITS,
    init_prob_open: float = 0.98,
    exclude: Collection[str] = (),
    towers: Collection[str] | str | None = None,
    group_queries: bool = True,
    discover: bool = False,
    probe: Mapping[str, Tensor] | None = None,
) -> HeadGates:
    """Put a gate on every attention head of a model, in place. Adapters come first; those of the model stay.

    Each head's slice of the output projection's input is multiplied by its gate from then on; with ``units``, so is
    each group of intermediate features of a feed-forward block, at the input of its down projection. In training mode
    the gates are sampled once for each forward pass of the model; in evaluation they take their deterministic value.
    :meth:`HeadGates.remove` removes them again. With gradient checkpointing, call ``backward()`` after each
    forward pass: activations of an earlier pass cannot be computed again, and that is an error.

    Args:
        model: The model to gate.
        units: ``heads``, ``neurons``, or both.
        group_size: Number of neurons in a group, which has one gate. The last group of a block is smaller if its width
            is no multiple.
        temperature: ``beta`` of the hard-concrete distribution.
        stretch_limits: ``(gamma, zeta)`` of the hard-concrete distribution.
        init_prob_open: Probability that a gate is open at the start. Close to 1, so that a pre-trained model starts
            nearly unchanged; not 1, where the penalty has no gradient.
        exclude: Names of attention modules and feed-forward blocks that get no gates, or patterns such as
            ``vision_tower.*``.
        towers: Towers that get gates, such as ``["language"]``; all if left out. :attr:`AttentionBlock.tower
            <gating.structure.attention.AttentionBlock.tower>` is that of a block.
        group_queries: Whether the query heads that share keys and values get one gate, so that they are removed
            together. With a gate for each query head, groups that lose different numbers of heads are filled up with
            padding. If all heads share keys and values, each head gets a gate in any case: no padding is needed.
        discover: Whether to gate attention and feed-forward blocks that the registries do not know, by their structure.
        probe: A batch of keyword arguments of the model to test such blocks on, and feed-forward blocks of classes
            outside of transformers; made from the model's configuration when left out.

    Returns:
        The gates, which are also the submodule ``head_gates`` of the model.

    Raises:
        InputError: The model has no known block, has gates already, or an argument is out of range. The model
            is unchanged.

    Warns:
        UserWarning: Some modules look like attention, or with ``units`` like feed-forward, and get no gates, and
            neither ``exclude`` nor ``towers`` leaves them out; they and the reasons are also the attribute ``ungated``
            of the gates.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=4, intermediate_size=8)
        >>> inject_gates(BertModel(config))
        HeadGates(8 heads in 2 attention blocks)
    """
    gates = create_gates(
        model,
        units=units,
        group_size=group_size,
        temperature=temperature,
        stretch_limits=stretch_limits,
        init_prob_open=init_prob_open,
        exclude=exclude,
        towers=towers,
        group_queries=group_queries,
        discover=discover,
        probe=probe,
    )
    blocks = gates.blocks(model)
    _prove_foreign_blocks(model, blocks, probe=probe)
    gates.attach(model, blocks)
    if gates.ungated:
        warnings.warn(ungated_warning(gates.ungated), stacklevel=3)
    return gates


def create_gates(
    model: nn.Module,
    *,
    units: UnitName | Collection[UnitName] = "heads",
    group_size: int = DEFAULT_GROUP_SIZE,
    exclude: Collection[str] = (),
    towers: Collection[str] | str | None = None,
    group_queries: bool = True,
    discover: bool = False,
    probe: Mapping[str, Tensor] | None = None,
    **distribution: Any,
) -> HeadGates:
    """Return the gates that :func:`inject_gates` would put on a model, and leave the model unchanged.

    An objective's ``check`` needs no more than these. The arguments and errors are those of :func:`inject_gates`; the
    model may be on the meta device.
    """
    if hasattr(model, CHILD_NAME):
        raise InputError(f"{type(model).__name__} has gates already; call model.{CHILD_NAME}.remove() first.")
    _check_not_sequential(model)
    found: list[Block] = []
    ungated: list[UngatedModules] = []
    for unit in check_units(units):
        blocks_of_unit, others = search_blocks(model, unit, group_size=group_size, discover=discover, probe=probe)
        found += blocks_of_unit
        ungated += others
    unfound = [name for one in ungated for name in one.names]
    wanted = check_towers([*(block.name for block in found), *unfound], towers)
    _check_exclude(found, unfound, exclude)
    blocks = [
        block for block in found if block.unit_ids and not is_left_out(block.name, exclude=exclude, towers=wanted)
    ]
    if not blocks:
        units_found = " or ".join(sorted({block.unit for block in found}))
        raise InputError(f"No {units_found} of {type(model).__name__} are left to put a gate on.")
    check_not_gated(blocks)
    gates = HeadGates(blocks, group_queries=group_queries, **distribution)
    gates.ungated = tuple(without_left_out(ungated, exclude=exclude, towers=wanted))
    return gates


def _check_exclude(found: list[Block], others: list[str], exclude: Collection[str]) -> None:
    """Raise ``InputError`` for a name or pattern of ``exclude`` that matches no module."""
    names = [block.name for block in found]
    unknown = [one for one in exclude if not any(fnmatchcase(name, one) for name in (*names, *others))]
    if unknown:
        raise InputError(f"There is no block {unknown[0]!r} to exclude. There are {', '.join(names)}.")


def _prove_foreign_blocks(model: nn.Module, blocks: list[Block], *, probe: Mapping[str, Tensor] | None) -> None:
    """Raise ``InputError`` if a block of a class outside of transformers, or of a registered layout, is another one."""
    # Names of layers do not show all that a class computes. Without this trial, the error would end the training.
    is_possible = probe is not None or isinstance(model, PreTrainedModel)
    has_adapters = any(without_adapter(module) is not module for module in model.modules())
    # A sharded model is proven as it loses its neurons.
    is_whole = not any(weight.is_meta or hasattr(weight, "full_tensor") for weight in model.parameters())
    if not is_possible or has_adapters or not is_whole:
        return
    for unit in UNITS:
        foreign = [block for block in blocks if block.unit == unit and block.is_foreign]
        # Layouts of heads are proven again at the removal; a wrong one of neurons would be found only then.
        if foreign and unit == "heads" and probe is None and not _runs(model):
            continue
        kept = {block.name: block.all_but_some() for block in foreign}
        try_removal(model, foreign, kept, probe=probe, must_matter=False)


def _runs(model: nn.Module) -> bool:
    try:
        run_probe(model)
    except ValueError:
        return False  # The user may have a batch for the removal.
    return True


def _check_not_sequential(model: nn.Module) -> None:
    """Raise ``InputError`` for a container such as SentenceTransformer, which would call the gates as one module."""
    if isinstance(model, nn.Sequential):
        part = part_of_transformers(model) or "by its name"
        raise InputError(f"{type(model).__name__} calls its parts in order: put gates on one of them, {part}.")
