"""The blocks of a model with units to gate: attention and feed-forward blocks, found by registries or by structure."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from gating.discovery.refusals import sort_blocks
from gating.discovery.ungated import (
    UngatedModules,
    attention_lookalikes,
    check_towers,
    explain_none,
    feed_forward_lookalikes,
    group_ungated,
    is_left_out,
    ungated_warning,
    without_left_out,
)
from gating.proof.conditions import check_not_wrapped, check_stays
from gating.structure.attention import AttentionBlock
from gating.structure.blocks import Block
from gating.structure.feed_forward import FeedForwardBlock
from gating.structure.layers import iter_blocks
from gating.units import UnitName

AnyBlock = TypeVar("AnyBlock", bound=Block)


def find_attention_blocks(
    model: nn.Module,
    *,
    discover: bool = False,
    probe: Mapping[str, Tensor] | None = None,
    exclude: Collection[str] = (),
    towers: Collection[str] | str | None = None,
) -> list[AttentionBlock]:
    """Find the attention blocks of a model, in the order of its modules.

    Args:
        model: A transformers model, or any module that holds attention classes of the registry.
        discover: Whether to search attention classes that the registry does not know by their structure, too. A layout
            found in this way is accepted only if removing heads gives the outputs of masking them on ``probe``.
        probe: A batch as the model's keyword arguments; made from its configuration when left out.
        exclude: Names of attention modules, or patterns with ``*``, to leave out.
        towers: Towers to search, such as ``language`` or ``vision``; all if left out.

    Returns:
        One block for each attention module whose class, or a class it inherits from, is registered. A module that
        serves several layers is one block.

    Raises:
        ValueError: No attention class of the model is known, or its heads cannot be removed, or it lacks a tower.

    Warns:
        UserWarning: Other modules look like attention, and neither ``exclude`` nor ``towers`` leaves them out. The
            message names them with the reasons.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=4, intermediate_size=8)
        >>> [(block.name, block.head_ids) for block in find_attention_blocks(BertModel(config))]
        [('encoder.layer.0.attention.self', (0, 1, 2, 3)), ('encoder.layer.1.attention.self', (0, 1, 2, 3))]
    """
    blocks, ungated = search_blocks(model, "heads", discover=discover, probe=probe)
    return _chosen(blocks, ungated, exclude=exclude, towers=towers)


def _chosen(
    blocks: Sequence[AnyBlock],
    ungated: Sequence[UngatedModules],
    *,
    exclude: Collection[str],
    towers: Collection[str] | str | None,
) -> list[AnyBlock]:
    """Return the blocks that a user does not leave out, and warn about other modules that look like them."""
    wanted = check_towers([*(block.name for block in blocks), *(name for one in ungated for name in one.names)], towers)
    ungated = without_left_out(ungated, exclude=exclude, towers=wanted)
    if ungated:
        warnings.warn(ungated_warning(ungated), stacklevel=3)
    return [block for block in blocks if not is_left_out(block.name, exclude=exclude, towers=wanted)]


def find_feed_forward_blocks(
    model: nn.Module,
    *,
    group_size: int | None = None,
    discover: bool = False,
    probe: Mapping[str, Tensor] | None = None,
    exclude: Collection[str] = (),
    towers: Collection[str] | str | None = None,
) -> list[FeedForwardBlock]:
    """Find the feed-forward blocks of a model, in the order of its modules.

    Args:
        model: A transformers model, or any module with projections of common names.
        group_size: Number of neurons in a group; if left out, that of an earlier removal, or 64.
        discover: Whether to search layers with other names by their widths, too; proven as attention is.
        probe: As for :func:`find_attention_blocks`, like the other arguments.
        exclude: Blocks to leave out.
        towers: Towers to search.

    Returns:
        One block for each down projection. A module that serves several layers is one block.

    Raises:
        ValueError: The model has no known feed-forward block, or its neurons cannot be removed, or it lacks a tower.

    Warns:
        UserWarning: Other modules look like feed-forward, or their neurons depend on each other, and neither
            ``exclude`` nor ``towers`` leaves them out. The message names them with the reasons.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=4, intermediate_size=96)
        >>> [(block.name, block.slot_widths) for block in find_feed_forward_blocks(BertModel(config))]
        [('encoder.layer.0.output.dense', (64, 32))]
    """
    blocks, ungated = search_blocks(model, "neurons", group_size=group_size, discover=discover, probe=probe)
    return _chosen(blocks, ungated, exclude=exclude, towers=towers)


def search_blocks(
    model: nn.Module,
    unit: UnitName,
    *,
    group_size: int | None = None,
    discover: bool = False,
    probe: Mapping[str, Tensor] | None = None,
) -> tuple[list[Any], list[UngatedModules]]:
    """Return the blocks of a model that can lose units, and the other modules that look like one, without a warning."""
    check_not_wrapped(model)
    problems = None
    if unit == "heads":
        check_stays(model)
    if discover:
        from gating.discovery.discover import discover_layouts

        problems = discover_layouts(model, unit, probe=probe)
    blocks, refused = sort_blocks(iter_blocks(model, unit, group_size=group_size))
    if unit == "heads":
        known = {block.module for block in (*blocks, *(block for block, _ in refused))}
        lookalikes = attention_lookalikes(model, known, problems=problems)
    else:
        lookalikes = feed_forward_lookalikes(model, problems=problems)
    ungated = group_ungated(model, refused, lookalikes, unit=unit)
    if not blocks:
        raise explain_none(model, ungated, unit=unit, searched=discover)
    return blocks, ungated
