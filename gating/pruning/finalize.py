"""Removal of the heads and neurons whose gates are closed: decide, fold, remove, verify."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gating.discovery.probe import forward_outputs, max_relative_difference
from gating.discovery.reference import Reference, record_references, unproven_by
from gating.discovery.refusals import check_has_values, check_no_adapters, check_whole
from gating.discovery.undo import Undo, apply_edits, undo_edits
from gating.errors import InputError, OperationError
from gating.gates import HeadGates
from gating.gates.sampler import GateChoice
from gating.pruning.alignment_heads import plan_alignment_heads
from gating.pruning.columns import plan_scale_features
from gating.pruning.compact_model import become_compact
from gating.pruning.decide import decide_gate_values, warn_if_arbitrary
from gating.pruning.prune import kept_units
from gating.pruning.prune_report import PruneReport, UnitCounts
from gating.structure.blocks import AttentionBlock
from gating.structure.edits import Edit
from gating.structure.feed_forward import Block
from gating.structure.removal import plan_removal

__all__ = [
    "FinalizeReport",
    "check_own_gates",
    "difference_to",
    "differs",
    "finalize",
    "folded_values",
    "plan_block",
    "record_masked",
]


@dataclass(frozen=True, kw_only=True)
class FinalizeReport(PruneReport):
    """Heads, neurons and parameters before and after finalizing, and how exact the removal is.

    Attributes:
        max_difference: Largest relative difference between the outputs of the masked and of the compact model on
            the probe batch.
        folded: For each block with gates, the factors multiplied into the output projection's columns of its kept
            heads or groups of neurons, in the order of ``kept_heads`` and ``kept_neurons``.
    """

    max_difference: float
    folded: dict[str, tuple[float, ...]]


def finalize(
    model: nn.Module,
    gates: HeadGates,
    objective: GateChoice | None = None,
    *,
    num_heads: int | None = None,
    num_neurons: int | None = None,
    kept: Tensor | None = None,
    probe: Mapping[str, Tensor] | None = None,
) -> FinalizeReport:
    """Remove the gates, and all heads and neurons whose gate is closed, in place.

    The fractional gate values of kept heads and neurons are multiplied into the columns of the output projection, so
    that the compact model computes the same outputs as the masked model. This is checked on a probe batch.

    Args:
        model: A model with gates from :func:`~gating.gates.inject_gates`.
        gates: The gates of this model.
        objective: The objective that chooses the gates to keep, with all of its settings; by default the one that is
            attached to the gates. An objective of a class of your own is not known to them: give it.
        num_heads: Number of heads to keep. If an objective chooses, it has to be its number. Otherwise those with the
            largest ``log_alpha`` are kept; without a number, all heads with an open gate.
        num_neurons: Number of neurons to keep, likewise.
        kept: Boolean mask of the gates to keep, ``[num_gates]``, instead of an objective and numbers.
        probe: Batch for the check, as keyword arguments of the model; by default made from the model's configuration.
            If the outputs do not depend on some of the blocks, as those for a batch of texts on a vision tower, a batch
            that is made is tried besides.

    Returns:
        The kept heads and neurons, the largest difference between masked and compact outputs, and in ``unproven`` the
        blocks on which these do not depend.

    Raises:
        ValueError: A number is out of range, cannot be reached with gates for groups of heads, or contradicts the
            objective; no gate is open; the gates belong to another model; a gate or an output is NaN; ``kept`` has
            another shape or dtype; adapters have not been merged; the model is on the meta device or does not accept
            the probe.
        TypeError: A number is not a whole number, ``kept`` is not a tensor, or the objective is none.
        RuntimeError: Masked and compact outputs differ. The model and its gates are unchanged.

    Example:
        >>> from gating import inject_gates
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> gates = inject_gates(model)
        >>> _ = gates.log_alpha.data.copy_(torch.tensor([9.0, -9, -9, 9, -9, -9, 9, -9]))
        >>> finalize(model, gates).kept_heads
        {'encoder.layer.0.attention.self': (0, 3), 'encoder.layer.1.attention.self': (2,)}
    """
    check_own_gates(model, gates)
    check_whole(model, remedy="call gating.sharding.finalize_sharded(model, gates)")
    check_has_values(model)
    gated = gates.blocks()
    check_no_adapters(model)
    values = decide_gate_values(gates, objective, num_heads=num_heads, num_neurons=num_neurons, kept=kept)
    warn_if_arbitrary(gates, values > 0, is_given=kept is not None)
    gates.attach_again()
    references = record_masked(model, gates, values, probe)
    before = UnitCounts.of(model)

    difference = _remove_checked(model, gates, gated, values, references)
    become_compact(model)
    folded, unproven = folded_values(gated, values.split(gates.block_sizes)), unproven_by(references, gated)
    return FinalizeReport.of(model, before, gated, max_difference=difference, folded=folded, unproven=unproven)


def check_own_gates(model: nn.Module, gates: HeadGates) -> None:
    """Raise ``ValueError`` for gates of another model."""
    if gates is None or getattr(model, "head_gates", None) is not gates:
        raise InputError(
            f"These gates are not those of this {type(model).__name__}; pass the result of inject_gates(model)."
        )


def record_masked(
    model: nn.Module,
    gates: HeadGates,
    values: Tensor,
    probe: Mapping[str, Tensor] | None,
    *,
    after_pass: Callable[[], None] = lambda: None,
    agree: Callable[[float], float] = float,
) -> list[Reference]:
    """Record the outputs of the masked model, and the blocks that they do not depend on.

    Args:
        model: The model.
        gates: Its gates.
        values: Their final values, ``[num_gates]``.
        probe: Batch for the passes; made here if None.
        after_pass: Called after each, to free what a sharded model has gathered.
        agree: Function that returns the largest of the numbers of all processes, which then decide alike.

    Raises:
        InputError: A gate or an output is NaN.
    """
    references = record_references(
        model,
        gates.blocks(),
        values.split(gates.block_sizes),
        lambda factors: gates.fixed_at(torch.cat(list(factors))),
        probe,
        after_pass=after_pass,
        agree=agree,
    )
    if values.isnan().any() or any(tensor.isnan().any() for tensor in references[0].outputs):
        raise InputError(
            "The model or its gates give NaN: training has diverged. Lower the learning rate, or train in float32."
        )
    return references


def _remove_checked(
    model: nn.Module, gates: HeadGates, blocks: list[Block], values: Tensor, references: Sequence[Reference]
) -> float:
    """Fold the gates and remove closed units; return the difference to the masked model, or restore everything."""
    edits = _plan(model, blocks, values, gates.block_sizes)
    gates.remove()
    done: list[Undo] = []
    try:
        done = apply_edits(edits)
        difference = 0.0
        for reference in references:
            difference = max(difference, own := difference_to(reference, model))
            if own > reference.tolerance:
                raise differs(blocks, own, reference)
    except BaseException:
        undo_edits(done)
        gates.attach(model, blocks)
        raise
    return difference


def difference_to(reference: Reference, model: nn.Module) -> float:
    """Return the largest relative difference between the outputs of a compact model and those of the masked one."""
    return max_relative_difference(reference.outputs, forward_outputs(model, reference.probe))


def differs(blocks: Sequence[Block], difference: float, reference: Reference) -> OperationError:
    """Return the error about a removal after which outputs differ."""
    classes = ", ".join(sorted({type(block.module).__name__ for block in blocks}))
    return OperationError(
        f"After removal the outputs differ from the masked model's by {difference:.1e}, more than the rounding error "
        f"of {reference.tolerance:.1e}: the layout of {classes} is not described rightly. Nothing was changed."
    )


def _plan(model: nn.Module, blocks: list[Block], values: Tensor, sizes: list[int]) -> list[Edit]:
    kept = kept_units(blocks, sizes, values > 0)
    edits = [
        edit
        for block, block_values in zip(blocks, values.split(sizes), strict=True)
        for edit in plan_block(block, block_values, kept[block.name])
    ]
    attention = [block for block in blocks if isinstance(block, AttentionBlock)]
    return [*edits, *plan_alignment_heads(model, attention, kept)]


def plan_block(block: Block, values: Tensor, kept: Collection[int]) -> list[Edit]:
    """Plan to fold the values of a block's gates, ``[num_gates]``, and to remove all its units but the kept ones."""
    slot_values = _slot_values(block, values)
    # Folded before the removal, so closed gates need no factor of 0.
    widths = torch.tensor(block.slot_widths, device=slot_values.device)
    factors = torch.where(slot_values > 0, slot_values, 1.0).repeat_interleave(widths)
    return [*plan_scale_features(block, factors), *plan_removal(block, kept)]


def folded_values(blocks: list[Block], values: tuple[Tensor, ...]) -> dict[str, tuple[float, ...]]:
    """Return the gate value of each kept unit, by block; the blocks are those before the removal."""
    folded = {}
    for block, block_values in zip(blocks, values, strict=True):
        by_unit = dict(zip(block.slot_ids, _slot_values(block, block_values).tolist(), strict=True))
        folded[block.name] = tuple(by_unit[unit] for unit in block.unit_ids if by_unit[unit] > 0)
    return folded


def _slot_values(block: Block, values: Tensor) -> Tensor:
    """Expand a block's gate values, ``[num_gates]``, to its slots, ``[num_slots]``."""
    return values.repeat_interleave(len(block.slot_ids) // len(values))
