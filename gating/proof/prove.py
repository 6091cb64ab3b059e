"""The proof of a removal: edits are applied, and undone unless the model computes the outputs of the masked one."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gating.errors import InputError, LayoutError
from gating.proof.masked import MaskedOutputs, factors_of
from gating.structure.blocks import Block
from gating.structure.edits import Edit, Undo, apply_edits, undo_edits

__all__ = ["Proof", "apply_proven", "check_proven", "try_removal"]


class Proof(NamedTuple):
    """A removal after which outputs are those with masked units.

    Attributes:
        done: Functions that undo it.
        difference: Largest relative difference between the outputs of the masked model and those after the removal.
        unproven: Names of blocks that lose units, of which the compared outputs do not depend.
    """

    done: list[Undo]
    difference: float
    unproven: tuple[str, ...]


def apply_proven(model: nn.Module, edits: Sequence[Edit], masked: MaskedOutputs) -> Proof:
    """Apply the edits of a removal, in place, and undo them unless the outputs equal those recorded with masked units.

    Returns:
        The functions for :func:`~gating.structure.edits.undo_edits`, the difference of the outputs, and the blocks of
        which nothing is proven.

    Raises:
        LayoutError: The outputs differ, or the model does not run any more. The model is bit for bit as before then.
    """
    done: list[Undo] = []
    try:
        done = apply_edits(edits)
        difference = check_proven(model, masked)
    except BaseException:
        undo_edits(done)
        raise
    return Proof(done, difference, masked.unproven)


def check_proven(model: nn.Module, masked: MaskedOutputs) -> float:
    """Return the difference between the outputs of a model after a removal and those of the masked one.

    Raises:
        LayoutError: It is larger than rounding, or the model does not run. The message says where the layout is from.
    """
    try:
        difference, problem = masked.compare(model)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise _wrong_layout(model, masked.blocks, f"it does not run ({type(error).__name__}: {error})") from error
    if problem is not None:
        raise _wrong_layout(model, masked.blocks, problem)
    return difference


def try_removal(
    model: nn.Module,
    blocks: Sequence[Block],
    kept: Mapping[str, Collection[int]],
    *,
    probe: Mapping[str, Tensor] | None = None,
    must_matter: bool = True,
) -> None:
    """Apply a removal, if it changes anything, compare the outputs with those of masked units, and undo it.

    Args:
        model: The model, which stays bit for bit as it is.
        blocks: The changed blocks.
        kept: For the name of each block, the original numbers of the units (heads, groups of neurons) to keep.
        probe: The batch to compare on; made from the model's configuration when left out.
        must_matter: Whether it is an error if the outputs depend on none of the blocks.

    Raises:
        ValueError: The outputs differ, or the model does not run on the probe, before or after the removal.
    """
    edits = [edit for block in blocks for edit in block.plan_removal(kept[block.name])]
    if not edits:
        return
    masked = MaskedOutputs.record(model, blocks, factors_of(blocks, kept), probe=probe)
    losing = [block.name for block in blocks if not set(block.slot_ids) <= set(kept[block.name])]
    if must_matter and losing and set(losing) <= set(masked.unproven):
        raise InputError(
            f"the outputs for this batch do not depend on {losing[0]}, so nothing is proven: pass probe={{argument "
            "name: tensor, ...}, one batch that reaches it."
        )
    undo_edits(apply_proven(model, edits, masked).done)


def _wrong_layout(model: nn.Module, blocks: Sequence[Block], problem: str) -> LayoutError:
    """Return the error for a layout that is not that of its class, which says where the layout is from."""
    unit, register = _words(blocks)
    guessed = sorted({type(block.module).__name__ for block in blocks if block.is_guessed})
    classes = guessed or sorted({type(block.module).__name__ for block in blocks})
    difference = (
        f"ithout its removed {unit}, {type(model).__name__} differs from the model with these {unit} masked: {problem}"
    )
    if guessed:
        return LayoutError(
            f"The layout that discovery guessed is wrong: w{difference}. If the {unit} of {', '.join(classes)} are "
            f"independent of each other, describe their layout with {register}. Nothing was changed."
        )
    return LayoutError(
        f"W{difference}. The layout of {', '.join(classes)} is another one than that of its row in the registry; "
        f"describe it with {register}. Nothing was changed."
    )


def _words(blocks: Sequence[Block]) -> tuple[str, str]:
    """Return the units of blocks, and the functions that register their layouts."""
    units = {block.unit for block in blocks}
    functions = sorted({f"gating.{block.registered_by}" for block in blocks})
    return units.pop() if len(units) == 1 else "units", " or ".join(functions)
