"""Removal of given heads, as with ``prune_heads`` of transformers 4, and groups of neurons, in place or in a copy."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gating.discovery.find import search_blocks
from gating.errors import InputError, InputTypeError
from gating.families.layouts import weight_dim, without_adapter
from gating.gates import HeadGates
from gating.gates.attachment import check_not_gated
from gating.loader.saving import become_compact
from gating.proof.conditions import check_no_adapters, check_not_wrapped, check_whole
from gating.proof.prove import MaskedOutputs, apply_proven, factors_of
from gating.pruning.plan import kept_units, plan_pruning
from gating.pruning.prune_report import PruneReport, UnitCounts
from gating.structure.attention import iter_attention_blocks
from gating.structure.blocks import Block, whole_number
from gating.structure.edits import Undo, apply_edits, fill, positions, undo_edits, whole
from gating.units import UNITS

Model = TypeVar("Model", bound=nn.Module)


@torch.inference_mode(mode=False)
def prune_heads(
    model: nn.Module,
    heads_to_prune: Mapping[int | str, Iterable[int]],
    *,
    discover: bool = False,
    probe: Mapping[str, Tensor] | None = None,
) -> PruneReport:
    """Remove attention heads from a model, in place.

    The heads' rows of the query, key and value projections and their columns of the output projection are removed; the
    outputs of all other heads stay the same. A layer may lose every head. Where groups of query heads that share keys
    and values lose different numbers of heads, smaller groups are padded: some of the removed heads keep their query
    rows, and their columns of the output projection are zero.

    Args:
        model: The model to change.
        heads_to_prune: For each layer, by number or by the block's name from :func:`find_attention_blocks`, the
            heads to remove. Heads are numbered as in the original model, also after an earlier removal; layers, and
            their numbers in names, as they are now. Layer -1 is the last one.
        discover: Whether attention classes that are not registered may be recognized by their structure. The model's
            outputs on the probe are then compared before and after, and the removal is undone if they differ.
        probe: Batch for this check, as keyword arguments of the model; by default made from its configuration. Given
            for registered classes, it is checked, too.

    Returns:
        The remaining heads, and the numbers of heads and parameters before and after.

    Raises:
        ValueError: A layer or head does not exist, a layer number matches more than one block, or heads of this model
            cannot be removed. The model is unchanged.
        TypeError: A head is not a whole number.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> prune_heads(model, {0: [2], -1: [0, 1, 3]}).kept_heads
        {'encoder.layer.0.attention.self': (0, 1, 3), 'encoder.layer.1.attention.self': (2,)}
    """
    check_can_change(model)
    blocks, ungated = search_blocks(model, "heads", discover=discover, probe=probe)
    check_no_adapters(model)
    removed = _read_request(blocks, ungated, heads_to_prune, what="head")
    return _prune(model, blocks, removed, is_checked=discover, probe=probe)


@torch.inference_mode(mode=False)
def prune_neurons(
    model: nn.Module,
    groups_to_prune: Mapping[int | str, Iterable[int]],
    *,
    group_size: int | None = None,
    discover: bool = False,
    probe: Mapping[str, Tensor] | None = None,
) -> PruneReport:
    """Remove groups of feed-forward neurons from a model, in place.

    The rows of the up projections and the columns of the down projection are removed. A layer may lose every neuron;
    its feed-forward block then outputs the bias of the down projection. The outputs on the probe are always compared
    with those of the masked model, since names of layers do not show all that a block computes.

    Args:
        model: The model to change.
        groups_to_prune: For each layer, by number or by the block's name from :func:`find_feed_forward_blocks`, the
            groups to remove. Groups are numbered as in the original model: group ``g`` has the neurons from
            ``g * group_size`` on. Layer -1 is the last one.
        group_size: Number of neurons in a group; if left out, that of an earlier removal, or 64.
        discover: Whether feed-forward blocks with other names may be recognized by their widths.
        probe: Batch for the check, as keyword arguments of the model; by default made from its configuration.

    Returns:
        The remaining units, and the numbers of heads, neurons and parameters before and after.

    Raises:
        ValueError: A layer or group does not exist, a layer number matches more than one block, or neurons of this
            model cannot be removed. The model is unchanged.
        TypeError: A group is not a whole number.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(
        ...     hidden_size=8, num_attention_heads=4, num_hidden_layers=1, intermediate_size=96, vocab_size=10
        ... )
        >>> prune_neurons(BertModel(config), {0: [1]}, group_size=32).kept_neurons
        {'encoder.layer.0.output.dense': (0, 2)}
    """
    check_can_change(model)
    blocks, ungated = search_blocks(model, "neurons", group_size=group_size, discover=discover, probe=probe)
    check_no_adapters(model)
    removed = _read_request(blocks, ungated, groups_to_prune, what="group")
    return _prune(model, blocks, removed, is_checked=True, probe=probe)


def check_can_change(model: nn.Module) -> None:
    """Raise ``ValueError`` for a model that is wrapped, sharded or has gates, ``TypeError`` for no module."""
    check_not_wrapped(model)
    check_whole(model, remedy="prune the model before fully_shard")
    if hasattr(model, "head_gates"):
        raise InputError("The model has gates: call gating.finalize(model, gates), or model.head_gates.remove() first.")


def _prune(
    model: nn.Module,
    blocks: Sequence[Block],
    removed: Mapping[str, set[int]],
    *,
    is_checked: bool,
    probe: Mapping[str, Tensor] | None,
) -> PruneReport:
    check_not_gated(blocks)
    kept = {block.name: set(block.unit_ids) - removed.get(block.name, set()) for block in blocks}
    edits = plan_pruning(model, blocks, kept)
    before = UnitCounts.of(model)
    unproven, done = tuple(block.name for block in blocks if not kept[block.name] >= set(block.unit_ids)), list[Undo]()
    try:
        if is_checked or probe is not None:
            masked = MaskedOutputs(model, blocks, factors_of(blocks, kept), probe=probe)
            done, _ = apply_proven(model, edits, masked)
            unproven = masked.unproven
        else:
            done = apply_edits(edits)
        become_compact(model)
    except BaseException:
        undo_edits(done)
        raise
    return PruneReport.of(model, before, blocks, unproven=unproven)


def _read_request(
    blocks: Sequence[Block], ungated: Sequence[object], request: Mapping[Any, Any], *, what: str
) -> dict[str, set[int]]:
    """Return the numbers of the units that a user asks to remove, by the name of their block."""
    removed: dict[str, set[int]] = {}
    for layer, given in request.items():
        block = _find_block(blocks, ungated, layer)
        numbers = read_numbers(given, block.num_numbers, what=what, place=f"layer {layer!r}")
        removed.setdefault(block.name, set()).update(numbers)
    return removed


def read_numbers(given: Any, total: int, *, what: str, place: str) -> set[int]:
    """Return the numbers of units, or of layers, as Python integers; integers of NumPy and PyTorch are accepted."""
    try:
        numbers = {whole_number(number) for number in given}
    except TypeError:
        raise InputTypeError(f"Give {what}s as a list of whole numbers; got {given!r} for {place}.") from None
    if wrong := numbers.difference(range(-total if what == "layer" else 0, total)):
        raise InputError(f"There is no {what} {min(wrong)} in {place}, which has {what}s 0 to {total - 1}.")
    return {number % total for number in numbers}


def _find_block(blocks: Sequence[Block], ungated: Sequence[object], layer: Any) -> Block:
    try:
        wanted = layer if isinstance(layer, str) else whole_number(layer)
    except TypeError:
        raise InputTypeError(f"A layer is a number or the name of a block; got {layer!r}.") from None
    if isinstance(wanted, int) and wanted < 0:
        wanted += max(block.layer_idx for block in blocks) + 1
    matches = [block for block in blocks if wanted in (block.layer_idx, block.name)]
    if len(matches) != 1:
        number, names = "several" if matches else "no", ", ".join(block.name for block in matches or blocks)
        others = "" if matches or not ungated else f" Others cannot lose any: {'; '.join(map(str, ungated))}."
        raise InputError(
            f"There are {number} {UNITS[blocks[0].unit].label} blocks to prune in layer {layer!r}: name one of {names}."
            f"{others}"
        )
    return matches[0]


def remove_in_copy(model: Model, gates: HeadGates, kept: Tensor) -> Model:
    """Return a copy of a model without gates from which the units of all gates but the kept ones are removed."""
    compact = deepcopy(model)
    gated = gates.blocks(compact)
    apply_edits(plan_pruning(compact, gated, kept_units(gated, kept.cpu().split(gates.block_sizes))))
    return compact


def silence_padding(model: nn.Module) -> None:
    """Set the output projection's columns of padding heads to zero again, in place.

    Training keeps these columns at zero, because their inputs are zero (see
    :func:`~gating.loader.parts.silenced`). Call this function after other changes of the weights, such as a
    merged adapter.

    Args:
        model: A model whose heads were pruned.

    Example:
        >>> from gating import prune_heads
        >>> from transformers import LlamaConfig, LlamaModel
        >>> sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 10}
        >>> model = LlamaModel(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes))
        >>> report = prune_heads(model, {0: [0]})  # heads 0 and 1 share keys and values
        >>> weight = nn.init.ones_(model.layers[0].self_attn.o_proj.weight)
        >>> silence_padding(model)
        >>> (weight == 0).all(dim=0).sum().item()
        4
    """
    for block in iter_attention_blocks(model):
        if block.head_slots == block.head_ids:
            continue
        padding = [slot for slot, head in enumerate(block.head_slots) if head not in block.head_ids]
        linear: Any = without_adapter(block.output_projection)
        silent, weight = positions(padding, block.head_dim).to(linear.weight.device), whole(linear.weight.detach())
        fill(linear.weight, weight.index_fill(weight_dim(linear, "inputs"), silent, 0.0))
