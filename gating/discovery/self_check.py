"""Proof of a removal: the compact model computes the outputs of the masked one."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from gating.discovery.probe import (
    cached_outputs,
    forward_outputs,
    max_relative_difference,
    rounding_of,
    rounding_tolerance,
    run_probe,
)
from gating.discovery.undo import Undo, apply_edits, undo_edits
from gating.errors import InputError
from gating.structure.edits import Edit
from gating.structure.feed_forward import Block

__all__ = ["apply_checked", "units_masked"]


def apply_checked(
    model: nn.Module,
    blocks: Sequence[Block],
    kept: Mapping[str, Collection[int]],
    edits: Sequence[Edit],
    *,
    probe: Mapping[str, Tensor] | None = None,
    must_matter: bool = False,
) -> list[Undo]:
    """Apply the edits of a removal, in place, and undo them unless the outputs equal those with masked units.

    For decoders, a step with a cache is also compared with the forward pass without one.

    Args:
        model: The model.
        blocks: The changed blocks before the removal.
        kept: For the name of each block, the original numbers of the units (heads, groups of neurons) to keep.
        edits: The planned removal.
        probe: The batch to compare on; made from the model's configuration when left out.
        must_matter: Whether it is an error if masking these units does not change the outputs.

    Returns:
        The functions for :func:`~gating.discovery.undo.undo_edits`.

    Raises:
        ValueError: The outputs differ, or the model does not run on the probe, before or after the removal. The model
            is unchanged then.
    """
    probe, dense = run_probe(model, probe)
    with units_masked(blocks, kept) as reached:
        expected = forward_outputs(model, probe)
    if must_matter and max_relative_difference(dense, expected) == 0:
        raise InputError(_why_nothing_is_proven(blocks, reached))
    with units_masked(blocks, kept, strength=1 - rounding_of(expected)):
        tolerance = rounding_tolerance(expected, forward_outputs(model, probe))
    done: list[Undo] = []
    with_cache: str | None = None
    try:
        done = apply_edits(edits)
        difference = max_relative_difference(expected, forward_outputs(model, probe))
        problem = f"outputs differ by {difference:.1e}" if difference > tolerance else None
    except Exception as error:
        problem = f"it does not run ({type(error).__name__}: {error})"
    if problem is None:
        with_cache = _find_problem_with_cache(model, probe, 10 * tolerance)
        if with_cache is None:
            return done
    undo_edits(done)
    if with_cache is not None and _find_problem_with_cache(model, probe, 10 * tolerance) is not None:
        # The dense model differs with a cache, too, so that a cache proves nothing.
        return apply_edits(edits)
    raise _wrong_layout(model, blocks, problem or with_cache)


def _wrong_layout(model: nn.Module, blocks: Sequence[Block], problem: str | None) -> InputError:
    """Return the error for a layout that is not that of its class, which says where the layout is from."""
    unit, register = _words(blocks)
    guessed = sorted({type(block.module).__name__ for block in blocks if _is_guessed(block)})
    classes = guessed or sorted({type(block.module).__name__ for block in blocks})
    difference = (
        f"ithout its removed {unit}, {type(model).__name__} differs from the model with these {unit} masked: {problem}"
    )
    if guessed:
        return InputError(
            f"The layout that discovery guessed is wrong: w{difference}. If the {unit} of {', '.join(classes)} are "
            f"independent of each other, describe their layout with {register}. Nothing was changed."
        )
    return InputError(
        f"W{difference}. The layout of {', '.join(classes)} is another one than that of its row in the registry; "
        f"describe it with {register}. Nothing was changed."
    )


def _is_guessed(block: Block) -> bool:
    """Return whether discovery has stored the layout of a block, rather than a row of a registry."""
    stored = (getattr(block.module, name, None) for name in ("attention_spec", "feed_forward_spec"))
    return any(spec == block.spec for spec in stored)


def _why_nothing_is_proven(blocks: Sequence[Block], reached: Collection[str]) -> str:
    """Return the reason for which masking does not change the outputs of a model."""
    unreached = [block.name for block in blocks if block.name not in reached]
    if unreached:
        return (
            f"the batch does not reach {unreached[0]}, so nothing is proven: pass probe={{argument name: tensor, "
            "...}, one batch that does."
        )
    return (
        "masking heads or neurons at the input of the output projection has no effect on the outputs of the model, so "
        "nothing is proven."
    )


def _words(blocks: Sequence[Block]) -> tuple[str, str]:
    """Return the units of blocks, and the functions that register their layouts."""
    is_feed_forward = {block.kind == "feed_forward" for block in blocks}
    register = {False: "gating.register_attention_spec", True: "gating.register_feed_forward_spec"}
    unit = "units" if len(is_feed_forward) == 2 else "neurons" if is_feed_forward == {True} else "heads"
    return unit, " or ".join(register[each] for each in sorted(is_feed_forward))


def _find_problem_with_cache(model: nn.Module, probe: Mapping[str, Tensor], tolerance: float) -> str | None:
    """Return how a step with a cache differs from the forward pass without one, or None."""
    try:
        pair = cached_outputs(model, probe)
    except Exception as error:
        return f"with a cache, it does not run ({type(error).__name__}: {error})"
    difference = max_relative_difference([pair[0]], [pair[1]]) if pair is not None else 0.0
    return f"with a cache, the next token's outputs differ by {difference:.1e}" if difference > tolerance else None


@contextmanager
def units_masked(
    blocks: Sequence[Block], kept: Mapping[str, Collection[int]], *, strength: float = 1.0
) -> Iterator[set[str]]:
    """Set the features of all units except the kept ones to zero inside a ``with`` block.

    The value is the set of the names of the blocks that a forward pass has called, which grows.

    Args:
        blocks: The blocks to mask.
        kept: For the name of each block, the original numbers of the units (heads, groups of neurons) to keep.
        strength: The factor of the kept features.
    """
    handles = []
    reached: set[str] = set()
    for block in blocks:
        if block.slot_ids:
            mask = torch.tensor([strength * (unit in kept[block.name]) for unit in block.slot_ids])
            mask = mask.repeat_interleave(torch.tensor(block.slot_widths))
            handles.append(block.hook_features(partial(_mask, mask, block.name, reached)))
    try:
        yield reached
    finally:
        for handle in handles:
            handle.remove()


def _mask(mask: Tensor, name: str, reached: set[str], features: Tensor) -> Tensor:
    reached.add(name)
    return features * mask.to(features)
