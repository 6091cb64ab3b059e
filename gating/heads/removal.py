"""Physical removal of heads: rows of queries, keys and values, columns of the output projection."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .blocks import AttentionBlock
from .empty import BiasOnly, emptied_class
from .spec import RowLayout

__all__ = ["Edit", "apply_edits", "plan_removal", "undo_edits"]


_ABSENT = object()


@dataclass(frozen=True)
class Edit:
    """One planned change, ``setattr(owner, attribute, make())``.

    Removal is a list of edits: everything is checked while the list is made, and nothing changes before it is
    applied. The new value is made late, so that only one projection exists twice at a time.
    """

    owner: object
    attribute: str
    make: Callable[[], object]


def apply_edits(edits: Iterable[Edit]) -> list[tuple[object, str, object]]:
    """Apply edits in place, in order.

    Returns:
        What was there before, for :func:`undo_edits`. Dropping it frees the memory of what was removed.
    """
    done: list[tuple[object, str, object]] = []
    try:
        for edit in edits:
            before = getattr(edit.owner, edit.attribute, _ABSENT)
            value = edit.make()
            done.append((edit.owner, edit.attribute, before))
            setattr(edit.owner, edit.attribute, value)
    except BaseException:
        undo_edits(done)
        raise
    return done


def undo_edits(done: Sequence[tuple[object, str, object]]) -> None:
    """Put everything back as it was before :func:`apply_edits`, bit for bit."""
    for owner, attribute, before in reversed(done):
        if before is _ABSENT:
            delattr(owner, attribute)
        else:
            setattr(owner, attribute, before)


def plan_removal(block: AttentionBlock, kept: Sequence[int]) -> list[Edit]:
    """Plan the removal of all heads of a block but the kept ones.

    Args:
        block: Where the heads are.
        kept: Positions, among the heads that are there now, of those to keep; ascending.

    Returns:
        Edits for :func:`apply_edits`; none if every head is kept.

    Raises:
        ValueError: Heads that share keys and values are kept only in part.
    """
    if len(kept) == block.num_heads:
        return []
    memory = [
        Edit(block.module, "num_heads_before", lambda: block.num_heads_before),
        Edit(block.module, "head_ids", lambda: tuple(block.head_ids[head] for head in kept)),
    ]
    if not kept:
        return [*_plan_emptying(block), *memory]
    kept_key_values = _kept_key_values(block, kept)
    edits = []
    for path, layout in block.spec.projections:
        rows = _rows(block, layout, kept, kept_key_values)
        edits += _plan_linear(getattr(*block.locate(path)), rows, dim=0)
    columns = _expand(kept, block.head_dim)
    edits += _plan_linear(block.output_projection, columns, dim=1)
    return [*edits, *_plan_attributes(block, len(kept)), *memory]


def _kept_key_values(block: AttentionBlock, kept: Sequence[int]) -> list[int]:
    group_size = block.num_heads // block.num_key_value_heads
    groups = sorted({head // group_size for head in kept})
    if len(kept) != len(groups) * group_size:
        raise ValueError(
            f"In {block.name}, {group_size} query heads share each key-value head, and heads {list(kept)} "
            f"split such a group. Keep or remove whole groups: {group_size} neighbouring heads together."
        )
    return groups


def _rows(block: AttentionBlock, layout: RowLayout, kept: Sequence[int], kept_key_values: Sequence[int]) -> Tensor:
    """Return the indices of the rows that stay in a projection."""
    stays = {"q": set(kept), "k": set(kept_key_values), "v": set(kept_key_values)}
    order = _row_blocks(layout, block.num_heads, block.num_key_value_heads)
    return _expand([i for i, (kind, head) in enumerate(order) if head in stays[kind]], block.head_dim)


def _row_blocks(layout: RowLayout, num_heads: int, num_key_value_heads: int) -> list[tuple[str, int]]:
    """Say which head each block of ``head_dim`` rows belongs to, in the order of the rows."""
    queries = [("q", head) for head in range(num_heads)]
    keys = [("k", head) for head in range(num_key_value_heads)]
    values = [("v", head) for head in range(num_key_value_heads)]
    if layout in ("hqkv", "gqkv"):
        size = num_heads // num_key_value_heads
        return [
            row_block
            for group in range(num_key_value_heads)
            for row_block in (*queries[group * size : (group + 1) * size], keys[group], values[group])
        ]
    return [row_block for kind in layout for row_block in {"q": queries, "k": keys, "v": values}[kind]]


def _expand(heads: Sequence[int], head_dim: int) -> Tensor:
    starts = torch.tensor(heads, dtype=torch.long).unsqueeze(1) * head_dim
    return (starts + torch.arange(head_dim)).flatten()


def _plan_linear(linear: nn.Module, kept: Tensor, *, dim: int) -> list[Edit]:
    """Keep some outputs (``dim=0``) or inputs (``dim=1``) of a linear layer."""
    edits = [
        Edit(linear, "weight", lambda: _take(linear.weight, kept, dim)),  # type: ignore[arg-type]
        Edit(linear, ("out_features", "in_features")[dim], lambda: len(kept)),
    ]
    if dim == 0 and linear.bias is not None:
        edits.append(Edit(linear, "bias", lambda: _take(linear.bias, kept, 0)))  # type: ignore[arg-type]
    return edits


def _take(parameter: nn.Parameter, kept: Tensor, dim: int) -> nn.Parameter:
    taken = parameter.detach().index_select(dim, kept.to(parameter.device))
    return nn.Parameter(taken, requires_grad=parameter.requires_grad)


def _plan_attributes(block: AttentionBlock, num_heads: int) -> list[Edit]:
    sizes = dict.fromkeys(block.spec.head_counts, num_heads)
    sizes |= dict.fromkeys(block.spec.head_widths, num_heads * block.head_dim)
    return [
        Edit(block.module, name, lambda size=size: size)  # type: ignore[misc]
        for name, size in sizes.items()
        if hasattr(block.module, name)
    ]


def _plan_emptying(block: AttentionBlock) -> list[Edit]:
    """A block without heads adds the output projection's bias and nothing else."""
    holder, attribute = block.locate(block.spec.output_projection)
    output_projection = block.output_projection
    edits = [Edit(holder, attribute, lambda: BiasOnly.replacing(output_projection))]
    for path, _ in block.spec.projections:
        projection_holder, name = block.locate(path)
        edits.append(Edit(projection_holder, name, lambda: None))
    edits.append(Edit(block.module, "__class__", lambda: emptied_class(type(block.module), block.spec.returns)))
    return [*edits, *_plan_attributes(block, 0)]
