"""Proof of a removal: the compact model computes the outputs of the masked one."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gating.discovery.probe import cached_outputs, forward_outputs, max_relative_difference, run_probe
from gating.discovery.reference import Reference, record_reference, record_references, unproven_by
from gating.discovery.undo import Undo, apply_edits, undo_edits
from gating.errors import InputError
from gating.structure.edits import Edit
from gating.structure.feed_forward import Block

__all__ = ["Proof", "apply_checked", "units_masked"]


class Proof(NamedTuple):
    """A removal after which outputs are those with masked units.

    Attributes:
        done: Functions that undo it.
        unproven: Names of blocks that lose units, of which the compared outputs do not depend.
    """

    done: list[Undo]
    unproven: tuple[str, ...]


def apply_checked(
    model: nn.Module,
    blocks: Sequence[Block],
    kept: Mapping[str, Collection[int]],
    edits: Sequence[Edit],
    *,
    probe: Mapping[str, Tensor] | None = None,
    must_matter: bool = False,
) -> Proof:
    """Apply the edits of a removal, in place, and undo them unless the outputs equal those with masked units.

    For decoders, a step with a cache is also compared with the forward pass without one.

    Args:
        model: The model.
        blocks: The changed blocks before the removal.
        kept: For the name of each block, the original numbers of the units (heads, groups of neurons) to keep.
        edits: The planned removal.
        probe: The batch to compare on; made from the model's configuration when left out.
        must_matter: Whether it is an error if masking these units does not change the outputs; each block alone is
            not looked at then.

    Returns:
        The functions for :func:`~gating.discovery.undo.undo_edits`, and the blocks for which nothing is proven.

    Raises:
        ValueError: The outputs differ, or the model does not run on the probe, before or after the removal. The model
            is unchanged then.
    """
    if must_matter:
        probe, dense = run_probe(model, probe)
        with units_masked(blocks, kept) as reached:
            if max_relative_difference(dense, forward_outputs(model, probe)) == 0:
                raise InputError(_why_nothing_is_proven(blocks, reached))
    factors, masked = _factors(blocks, kept), partial(_features_scaled, blocks)
    if must_matter:
        references = [record_reference(model, blocks, factors, masked, probe, finds_unproven=False)]
    else:
        references = record_references(model, blocks, factors, masked, probe)
    probe, tolerance = references[0].probe, references[0].tolerance
    done: list[Undo] = []
    with_cache: str | None = None
    try:
        done = apply_edits(edits)
        problem = _find_difference(model, references)
    except Exception as error:
        problem = f"it does not run ({type(error).__name__}: {error})"
    if problem is None:
        with_cache = _find_problem_with_cache(model, probe, 10 * tolerance)
        if with_cache is None:
            return Proof(done, unproven_by(references, blocks))
    undo_edits(done)
    if with_cache is not None and _find_problem_with_cache(model, probe, 10 * tolerance) is not None:
        # The dense model differs with a cache, too, so that a cache proves nothing.
        return Proof(apply_edits(edits), unproven_by(references, blocks))
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


def _find_difference(model: nn.Module, references: Sequence[Reference]) -> str | None:
    """Return how a model differs from the references, or None."""
    for reference in references:
        difference = max_relative_difference(reference.outputs, forward_outputs(model, reference.probe))
        if difference > reference.tolerance:
            return f"outputs differ by {difference:.1e}"
    return None


def _find_problem_with_cache(model: nn.Module, probe: Mapping[str, Tensor], tolerance: float) -> str | None:
    """Return how a step with a cache differs from the forward pass without one, or None."""
    try:
        pair = cached_outputs(model, probe)
    except Exception as error:
        return f"with a cache, it does not run ({type(error).__name__}: {error})"
    difference = max_relative_difference([pair[0]], [pair[1]]) if pair is not None else 0.0
    return f"with a cache, the next token's outputs differ by {difference:.1e}" if difference > tolerance else None


@contextmanager
def units_masked(blocks: Sequence[Block], kept: Mapping[str, Collection[int]]) -> Iterator[set[str]]:
    """Set the features of all units except the kept ones to zero inside a ``with`` block.

    The value is the set of the names of the blocks that a forward pass has called, which grows.

    Args:
        blocks: The blocks to mask.
        kept: For the name of each block, the original numbers of the units (heads, groups of neurons) to keep.
    """
    with _features_scaled(blocks, _factors(blocks, kept)) as reached:
        yield reached


def _factors(blocks: Sequence[Block], kept: Mapping[str, Collection[int]]) -> list[Tensor]:
    """Return the factor of each slot of each block: 1 for kept units, else 0."""
    return [torch.tensor([float(unit in kept[block.name]) for unit in block.slot_ids]) for block in blocks]


@contextmanager
def _features_scaled(blocks: Sequence[Block], factors: Sequence[Tensor]) -> Iterator[set[str]]:
    """Multiply the features of each slot by its factor inside a ``with`` block."""
    handles = []
    reached: set[str] = set()
    for block, factor in zip(blocks, factors, strict=True):
        if block.slot_ids:
            by_feature = factor.repeat_interleave(torch.tensor(block.slot_widths))
            handles.append(block.hook_features(partial(_scale, by_feature, block.name, reached)))
    try:
        yield reached
    finally:
        for handle in handles:
            handle.remove()


def _scale(factors: Tensor, name: str, reached: set[str], features: Tensor) -> Tensor:
    reached.add(name)
    return features * factors.to(features)
