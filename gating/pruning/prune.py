"""Removal of given heads, as with ``prune_heads`` of transformers 4."""

import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gating.discovery.find import find_attention_blocks
from gating.discovery.refusals import check_no_adapters
from gating.discovery.self_check import apply_checked
from gating.discovery.undo import apply_edits
from gating.errors import InputError, InputTypeError
from gating.pruning.alignment_heads import plan_alignment_heads
from gating.pruning.compact_model import become_compact
from gating.structure.blocks import AttentionBlock
from gating.structure.edits import Edit
from gating.structure.removal import plan_removal

__all__ = ["PruneReport", "num_parameters", "plan_pruning", "prune_heads", "whole_number"]


@dataclass(frozen=True)
class PruneReport:
    """Heads and parameters of a model before and after a removal.

    Attributes:
        kept_heads: For each attention block, the original numbers of its remaining heads.
        num_heads: Number of remaining heads.
        num_heads_before: Number of heads before this removal.
        num_parameters: Number of remaining parameters.
        num_parameters_before: Number of parameters before this removal.
    """

    kept_heads: dict[str, tuple[int, ...]]
    num_heads: int
    num_heads_before: int
    num_parameters: int
    num_parameters_before: int


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
            heads to remove. Heads are numbered as in the original model, also after an earlier removal. Layer -1 is
            the last one.
        discover: Whether attention classes that are not registered may be recognized by their structure. The model's
            outputs on the probe are then compared before and after, and the removal is undone if they differ.
        probe: Batch for this check, as keyword arguments of the model; by default made from its configuration.

    Returns:
        The remaining heads, and the numbers of heads and parameters before and after.

    Raises:
        ValueError: A layer or head does not exist, a layer number matches more than one block, or heads of this model
            cannot be removed. The model is unchanged.
        TypeError: A head is not a whole number, or ``heads_to_prune`` is not a mapping.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> prune_heads(model, {0: [2], -1: [0, 1, 3]}).kept_heads
        {'encoder.layer.0.attention.self': (0, 1, 3), 'encoder.layer.1.attention.self': (2,)}
    """
    if hasattr(model, "head_gates"):
        raise InputError("The model has gates: call gating.finalize(model, gates), or model.head_gates.remove() first.")
    blocks = find_attention_blocks(model, discover=discover, probe=probe)
    check_no_adapters(model)
    removed = _read_request(blocks, heads_to_prune)
    kept = {block.name: set(block.head_ids) - removed.get(block.name, set()) for block in blocks}
    edits = plan_pruning(model, blocks, kept)
    parameters_before = num_parameters(model)
    if discover:
        apply_checked(model, blocks, kept, edits, probe=probe)
    else:
        apply_edits(edits)
    become_compact(model)
    return PruneReport(
        kept_heads={name: tuple(sorted(heads)) for name, heads in kept.items()},
        num_heads=sum(map(len, kept.values())),
        num_heads_before=sum(block.num_heads for block in blocks),
        num_parameters=num_parameters(model),
        num_parameters_before=parameters_before,
    )


def plan_pruning(model: nn.Module, blocks: Sequence[AttentionBlock], kept: Mapping[str, Collection[int]]) -> list[Edit]:
    """Return the edits that remove all heads but the kept ones.

    Args:
        model: The model.
        blocks: The attention blocks to change.
        kept: For each of these blocks, by name, the original numbers of the heads to keep.
    """
    edits = [edit for block in blocks for edit in plan_removal(block, kept[block.name])]
    return [*edits, *plan_alignment_heads(model, blocks, kept)]


def num_parameters(model: nn.Module) -> int:
    """Return the number of parameters of a model; shared parameters count once.

    Example:
        >>> num_parameters(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def _read_request(
    blocks: Sequence[AttentionBlock], heads_to_prune: Mapping[int | str, Iterable[int]]
) -> dict[str, set[int]]:
    if not isinstance(heads_to_prune, Mapping):
        raise InputTypeError(f"Give the heads of each layer, {{layer: [head, ...]}}; got {heads_to_prune!r}.")
    removed: dict[str, set[int]] = {}
    for layer, given in heads_to_prune.items():
        block = _find_block(blocks, layer)
        heads = _read_heads(given, layer)
        wrong = [head for head in heads if not 0 <= head < block.num_heads_before]
        if wrong:
            raise InputError(
                f"Layer {layer!r} has heads 0 to {block.num_heads_before - 1}; there is no head {wrong[0]}."
            )
        removed.setdefault(block.name, set()).update(heads)
    return removed


def _read_heads(heads: object, layer: object) -> list[int]:
    """Return heads as Python integers; integers of NumPy and PyTorch are accepted."""
    if not isinstance(heads, Iterable) or getattr(heads, "ndim", 1) == 0:
        raise InputTypeError(f"For each layer give a list of heads; got {heads!r} for layer {layer!r}.")
    try:
        return [whole_number(head) for head in heads]
    except TypeError:
        raise InputTypeError(f"Heads are whole numbers; got {heads!r} for layer {layer!r}.") from None


def whole_number(value: Any) -> int:
    """Return an integer, also of NumPy or PyTorch, as a Python integer.

    Raises:
        TypeError: The value is not an integer; booleans are not.

    Example:
        >>> import torch
        >>> whole_number(torch.tensor(3))
        3
    """
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        raise InputTypeError("a boolean is not a whole number")
    return operator.index(value)


def _find_block(blocks: Sequence[AttentionBlock], layer: object) -> AttentionBlock:
    try:
        wanted: object = layer if isinstance(layer, str) else whole_number(layer)
    except TypeError:
        raise InputTypeError(f"A layer is a number or the name of an attention block; got {layer!r}.") from None
    if isinstance(wanted, int) and wanted < 0:
        wanted += max(block.layer_idx for block in blocks) + 1
    matches = [block for block in blocks if wanted in (block.layer_idx, block.name)]
    if len(matches) == 1:
        return matches[0]
    names = ", ".join(block.name for block in (matches or blocks))
    if matches:
        raise InputError(f"Layer {layer} has more than one attention block: name one of {names}.")
    raise InputError(f"There is no layer {layer!r}. The attention blocks are: {names}.")
