"""Attention heads as a unit."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gating.discovery.find import search_attention
from gating.discovery.ungated import UngatedModules
from gating.families.linear import num_inputs, num_outputs, parameter_names, without_adapter
from gating.families.registry import find_spec
from gating.structure.attention import AttentionBlock, iter_attention_blocks
from gating.structure.edits import Features, whole
from gating.structure.hooks import Handle
from gating.units.unit import Calls, GateSize, Metrics, Unit, has_foreign_classes, token_counter

__all__ = ["HEADS", "Heads", "head_norms", "weight_matrix"]


class Heads(Unit[AttentionBlock]):
    """Attention heads: a gate stands for one, or for a group of query heads that share keys and values."""

    name = "heads"
    singular = "head"
    full_name = "attention head"
    label = "attention"
    gated = "heads or groups"
    metrics = Metrics("gates/expected_open", "gates/open", "gates/target", "gates/layer_{:02d}/open", by_group=True)
    has_minimum = True
    # A user may register the layout of a model for which no batch can be made.
    is_tried_if_it_runs = True
    why_inexact = (
        "a gate stands for the {} query heads that share keys and values",
        "give every head a gate with ",
        "inject_gates(model, group_queries=False).",
        "gates.group_queries=false.",
    )

    blocks = staticmethod(iter_attention_blocks)

    def search(
        self,
        model: nn.Module,
        *,
        group_size: int | None = None,
        discover: bool = False,
        probe: Mapping[str, Tensor] | None = None,
    ) -> tuple[list[AttentionBlock], list[UngatedModules]]:
        """Return the attention blocks that can lose heads, and the other modules that look like attention."""
        return search_attention(model, discover=discover, probe=probe)

    def size(self, block: AttentionBlock) -> int:
        """Return the number of present heads, without padding."""
        return block.num_heads

    def size_before(self, block: AttentionBlock) -> int:
        """Return the number of heads before any removal."""
        return block.num_heads_before

    def gate_sizes(self, block: AttentionBlock, *, group_queries: bool = True) -> list[GateSize]:
        """Return the sizes of the gates of a block.

        Args:
            block: The block.
            group_queries: Whether the query heads that share keys and values get one gate.

        Raises:
            InputError: Query heads cannot be shared out evenly among the key-value heads.

        Example:
            >>> from transformers import BertConfig, BertModel
            >>> from gating import find_attention_blocks
            >>> model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=4))
            >>> HEADS.gate_sizes(find_attention_blocks(model)[0])[0]
            GateSize(num_units=1, num_features=2, num_weights=64.0, num_parameters=70.0)
        """
        return [_gate_size(block, slots) for slots in _slots_by_gate(block, group_queries=group_queries)]

    def norms(self, block: AttentionBlock) -> Tensor:
        """Return the norm of :func:`head_norms` of each slot; slots that pad groups of query heads are not heads."""
        norms = head_norms(block)
        return norms * torch.tensor([slot in block.head_ids for slot in block.head_slots], device=norms.device)

    def is_foreign(self, block: AttentionBlock) -> bool:
        """Return whether the block has a class from elsewhere, or a layout that the registry lacks."""
        # Discovery has tried the layouts that it stores, and so has the save of a record.
        is_tried = getattr(block.module, "attention_spec", None) == block.spec
        shipped = block.spec if is_tried else find_spec(block.module, shipped_only=True)
        return shipped != block.spec or has_foreign_classes(block.module)

    def all_but_some(self, block: AttentionBlock, *, group_queries: bool) -> tuple[int, ...]:
        """Return the heads without those of the first gate, or without the first one of each group of queries."""
        if block.num_key_value_heads <= 1:
            return super().all_but_some(block, group_queries=group_queries)
        size = block.queries_per_key
        removed = set(block.head_slots[:size] if group_queries else block.head_slots[::size])
        removed = removed if len(removed) < len(block.head_slots) else {block.head_slots[0]}
        return tuple(head for head in block.head_ids if head not in removed) or block.head_ids

    def other_inputs(self, block: AttentionBlock, scale: Tensor) -> Iterator[tuple[nn.Module, Tensor]]:
        """Yield the further output projections of the same heads, which may be narrower, with their factors."""
        by_head = scale.unflatten(0, (-1, block.head_dim))
        for linear, width in block.other_outputs():
            yield linear, by_head[:, :width].flatten()

    def hook_calls(self, block: AttentionBlock, calls: Calls) -> list[Handle]:
        """Count the queries and keys of a block in a forward pass."""

        def count_keys(layer: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
            if isinstance(layer, nn.MultiheadAttention):
                keys = named["key"] if "key" in named else inputs[1]
                calls.num_keys = keys.shape[-2 if layer.batch_first or keys.dim() == 2 else 0]
            else:
                calls.num_keys = (*inputs, *named.values())[0].shape[-2]

        # Where keys are those of an earlier layer, there are as many as queries.
        key = max(block.projections(), key=lambda projection: "k" in projection[1])[0]
        return [
            block.hook_features(token_counter(calls)),
            key.register_forward_pre_hook(count_keys, with_kwargs=True),
        ]

    def part_in_words(self, kind: str | None) -> str:
        """Return the part of a model with a kind of attention in words."""
        return f"{kind} attention of this model" if kind else "this model"

    def describe_gates(self, block: AttentionBlock, num_gates: int) -> str:
        """Return the number of heads, and that of gates if it is another."""
        heads = f"num_heads={block.num_heads}"
        return heads if num_gates == block.num_heads else f"{heads}, num_gates={num_gates}"


HEADS = Heads()


def head_norms(block: AttentionBlock) -> Tensor:
    """Return the L1 norm of the weights of each head of a block, without biases.

    These are the head's rows of the query, key and value projections and its columns of the output projection. Shared
    keys and values count in equal parts for the query heads that share them.

    Returns:
        Norm of each of ``block.head_slots``, ``[num_slots]``, float32.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from gating.discovery.find import find_attention_blocks
        >>> config = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=4, intermediate_size=8)
        >>> head_norms(find_attention_blocks(BertModel(config))[0]).shape
        torch.Size([4])
    """
    slots, groups = range(len(block.head_slots)), range(block.num_key_value_heads)
    size = block.queries_per_key
    columns = weight_matrix(block.output_projection).T
    norms = torch.stack([_norm(columns, Features([slot], block.head_dim)) for slot in slots])
    for linear, layout in block.projections():
        weight = weight_matrix(linear)
        own = [_norm(weight, block.rows_of(linear, layout, [slot], ())) for slot in slots]
        shared = [_norm(weight, block.rows_of(linear, layout, (), [group])) for group in groups]
        norms = norms + torch.stack(own) + torch.stack(shared).repeat_interleave(size) / size
    return norms


def weight_matrix(linear: nn.Module) -> Tensor:
    """Return the weight of a layer as ``[outputs, inputs]``, without that of an adapter."""
    linear = without_adapter(linear)
    weight = getattr(linear, parameter_names(linear)[0])
    assert isinstance(weight, Tensor)
    weight = whole(weight)
    return weight.T if isinstance(linear, Conv1D) else weight


def _norm(weight: Tensor, rows: Features) -> Tensor:
    return weight.index_select(0, rows.index().to(weight.device)).abs().sum(dtype=torch.float32)


def _gate_size(block: AttentionBlock, slots: Sequence[int]) -> GateSize:
    # Query heads with a gate each share the rows of their keys and values.
    group = block.queries_per_key
    weights = biases = 0.0
    for linear, layout in block.projections():
        shares: dict[int, float] = {}
        for (kind, head), width in zip(block.row_runs(layout), block.run_widths(linear, layout), strict=True):
            if head == 0:
                shares[width] = shares.get(width, 0) + (1.0 if kind == "q" else 1 / group)
        rows = sum(width * share for width, share in shares.items())
        # A convolution multiplies as many positions as its kernel has.
        layer = without_adapter(linear)
        weights += rows * num_inputs(layer) * getattr(layer, "kernel_size", (1,))[0]
        biases += rows * (getattr(layer, parameter_names(layer)[1], None) is not None)
    weights += block.head_dim * num_outputs(block.output_projection)
    num_heads, num_slots = len(set(slots) & set(block.head_ids)), len(slots)
    return GateSize(
        num_heads,
        num_slots * block.head_dim,
        num_slots * weights,
        num_slots * (weights + biases),
        # Padding alone is never kept for its own sake.
        num_slots * (block.key_dim + block.head_dim) if num_heads else 0,
        num_slots * block.head_dim * block.key_dim if block.spec.has_state else 0,
        # One head of a group leaves the keys and values that the others share.
        block.head_cache_width if num_slots == group else 0,
    )


def _slots_by_gate(block: AttentionBlock, *, group_queries: bool) -> list[tuple[int, ...]]:
    """Return the head slots of a block, as original head numbers, that each of its gates multiplies."""
    slots, size = block.head_slots, block.queries_per_key
    if not group_queries or block.num_key_value_heads == 1:
        size = 1
    return [slots[start : start + size] for start in range(0, len(slots), size)]
