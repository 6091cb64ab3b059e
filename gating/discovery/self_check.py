"""Proof of a removal: the compact model computes the outputs of the masked one."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from gating.discovery.probe import cached_outputs, forward_outputs, max_relative_difference, run_probe, tolerance_for
from gating.discovery.undo import Undo, apply_edits, undo_edits
from gating.errors import InputError
from gating.structure.blocks import AttentionBlock
from gating.structure.edits import Edit
from gating.structure.subclasses import HeadMask

__all__ = ["apply_checked", "heads_masked"]


def apply_checked(
    model: nn.Module,
    blocks: Sequence[AttentionBlock],
    kept: Mapping[str, Collection[int]],
    edits: Sequence[Edit],
    *,
    probe: Mapping[str, Tensor] | None = None,
    must_matter: bool = False,
) -> list[Undo]:
    """Apply the edits of a removal, in place, and undo them unless the outputs equal those with masked heads.

    For decoders, a step with a cache is also compared with the forward pass without one.

    Args:
        model: The model.
        blocks: Its attention blocks before the removal.
        kept: For the name of each block, the original numbers of the heads to keep.
        edits: The planned removal.
        probe: The batch to compare on; made from the model's configuration when left out.
        must_matter: Whether it is an error if masking these heads does not change the outputs.

    Returns:
        The functions for :func:`~gating.discovery.undo.undo_edits`.

    Raises:
        ValueError: The outputs differ, or the model does not run on the probe, before or after the removal. The model
            is unchanged then.
    """
    probe, dense = run_probe(model, probe)
    with heads_masked(blocks, kept):
        expected = forward_outputs(model, probe)
    if must_matter and max_relative_difference(dense, expected) == 0:
        raise InputError(
            "masking heads at the input of the output projection has no effect, so nothing is proven: pass "
            "probe={argument name: tensor, ...}, one batch that reaches all of the model's attention."
        )
    done: list[Undo] = []
    try:
        done = apply_edits(edits)
        problem = _find_problem(model, probe, expected)
    except Exception as error:
        problem = f"it does not run ({type(error).__name__}: {error})"
    if problem is None:
        return done
    undo_edits(done)
    classes = sorted({type(block.module).__name__ for block in blocks})
    raise InputError(
        f"Without its removed heads, {type(model).__name__} differs from the model with these heads masked: {problem}. "
        f"The layout of {', '.join(classes)} is another one; describe it with gating.register_attention_spec. "
        "Nothing was changed."
    )


def _find_problem(model: nn.Module, probe: Mapping[str, Tensor], expected: list[Tensor]) -> str | None:
    actual = forward_outputs(model, probe)
    tolerance = max((tolerance_for(tensor.dtype) for tensor in expected), default=0.0)
    difference = max_relative_difference(expected, actual)
    if difference > tolerance:
        return f"outputs differ by {difference:.1e}"
    pair = cached_outputs(model, probe)
    if pair is not None:
        difference = max_relative_difference([pair[0]], [pair[1]])
        if difference > 10 * tolerance:
            return f"with a cache, the next token's outputs differ by {difference:.1e}"
    return None


@contextmanager
def heads_masked(blocks: Sequence[AttentionBlock], kept: Mapping[str, Collection[int]]) -> Iterator[None]:
    """Set the outputs of all heads except the kept ones to zero inside a ``with`` block.

    Args:
        blocks: The blocks to mask.
        kept: For the name of each block, the original numbers of the heads to keep.
    """
    handles = []
    for block in blocks:
        if block.head_slots:
            is_kept = tuple(head in kept[block.name] for head in block.head_slots)
            mask = HeadMask(is_kept, block.head_dim, block.spec.output_projection)
            handles.append(block.output_projection.register_forward_pre_hook(mask))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
