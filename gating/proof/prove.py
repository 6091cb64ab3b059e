"""The proof of a removal: edits are applied, and undone unless the model computes the outputs of the masked one."""

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn

from gating.errors import InputError, LayoutError
from gating.proof.masked import MaskedOutputs, factors_of
from gating.proof.outputs import OUT_OF_MEMORY
from gating.structure.blocks import Block
from gating.structure.edits import Edit, Undo, apply_edits, undo_edits

__all__ = ["apply_proven", "check_proven", "try_removal"]


def apply_proven(model: nn.Module, edits: Sequence[Edit], masked: MaskedOutputs) -> tuple[list[Undo], float]:
    """Apply the edits of a removal, in place, and undo them unless the outputs equal those recorded with masked units.

    Return the functions that undo them, and the largest relative difference of outputs. On a ``LayoutError``, because
    the outputs differ or the model does not run any more, it is bit for bit as before.
    """
    done = apply_edits(edits)
    try:
        return done, check_proven(model, masked)
    except BaseException:
        undo_edits(done)
        raise


def check_proven(model: nn.Module, masked: MaskedOutputs) -> float:
    """Return the difference between the outputs of a model after a removal and those of the masked one.

    Raises:
        LayoutError: It is larger than rounding, or the model does not run. The message says where the layout is from.
    """
    try:
        difference, problem = masked.compare(model)
    except OUT_OF_MEMORY:
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

    ``kept`` has the numbers of the units to keep by the names of the blocks. With ``must_matter``, it is an error if
    the outputs depend on none of the blocks, as it is if they differ.
    """
    edits = [edit for block in blocks for edit in block.plan_removal(kept[block.name])]
    if not edits:
        return
    masked = MaskedOutputs(model, blocks, factors_of(blocks, kept), probe=probe)
    losing = [block.name for block in blocks if not set(block.slot_ids) <= set(kept[block.name])]
    if must_matter and losing and set(losing) <= set(masked.unproven):
        raise InputError(
            f"the outputs for this batch do not depend on {losing[0]}, so nothing is proven: pass probe={{argument "
            "name: tensor, ...}, one batch that reaches it."
        )
    undo_edits(apply_proven(model, edits, masked)[0])


def _wrong_layout(model: nn.Module, blocks: Sequence[Block], problem: str) -> LayoutError:
    """Return the error for a layout that is not that of its class, which says where the layout is from."""
    units, *others = sorted({block.unit for block in blocks})
    units = "units" if others else units
    guessed = {type(block.module).__name__ for block in blocks if block.is_guessed}
    classes = ", ".join(sorted(guessed or {type(block.module).__name__ for block in blocks}))
    start = "The layout that discovery guessed is wrong: without" if guessed else "Without"
    register = " or ".join(sorted({f"gating.{block.registered_by}" for block in blocks}))
    row = "" if guessed else "The layout is another one than that of its row in the registry. "
    return LayoutError(
        f"{start} its removed {units}, {type(model).__name__} differs from the model with these {units} masked: "
        f"{problem}. {row}If they are independent of each other, describe the layout of {classes} with {register}. "
        "Nothing was changed."
    )
