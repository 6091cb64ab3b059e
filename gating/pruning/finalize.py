"""Removal of the heads whose gates are closed: decide, fold, remove, verify."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gating.discovery.find import find_attention_blocks
from gating.discovery.probe import forward_outputs, max_relative_difference, run_probe, tolerance_for
from gating.discovery.refusals import check_has_values, check_no_adapters
from gating.discovery.undo import Undo, apply_edits, undo_edits
from gating.errors import InputError, OperationError
from gating.gates import HeadGates
from gating.pruning.columns import plan_scale_inputs
from gating.pruning.compact_model import become_compact
from gating.pruning.decide import decide_gate_values, warn_if_arbitrary
from gating.pruning.prune import PruneReport, num_parameters, plan_pruning
from gating.structure.blocks import AttentionBlock
from gating.structure.edits import Edit

__all__ = ["FinalizeReport", "finalize"]


@dataclass(frozen=True)
class FinalizeReport(PruneReport):
    """Heads and parameters before and after finalizing, and how exact the removal is.

    Attributes:
        max_difference: Largest relative difference between the outputs of the masked and of the compact model on
            the probe batch.
        folded: For each block with gates, the factors multiplied into the output projection's columns of its kept
            heads, in the order of ``kept_heads``.
    """

    max_difference: float
    folded: dict[str, tuple[float, ...]]


def finalize(
    model: nn.Module,
    gates: HeadGates,
    *,
    num_heads: int | None = None,
    kept: Tensor | None = None,
    probe: Mapping[str, Tensor] | None = None,
) -> FinalizeReport:
    """Remove the gates and all heads whose gate is closed, in place.

    The fractional gate values of kept heads are multiplied into the columns of the output projection, so that the
    compact model computes the same outputs as the masked model. This is checked on a probe batch.

    Args:
        model: A model with gates from :func:`~gating.gates.inject_gates`.
        gates: The gates of this model.
        num_heads: Number of heads to keep, those with the largest ``log_alpha``. By default, all heads with an open
            gate are kept.
        kept: Boolean mask of the gates to keep, ``[num_gates]``, instead of ``num_heads``; for example from an
            objective's ``kept``.
        probe: Batch for the check, as keyword arguments of the model; by default made from the model's configuration.

    Returns:
        The kept heads and the largest difference between masked and compact outputs.

    Raises:
        ValueError: ``num_heads`` is out of range or cannot be reached with gates for groups of heads; no gate is open;
            the gates belong to another model; a gate or an output is NaN; ``kept`` has another shape or dtype; adapters
            have not been merged; the model is on the meta device or does not accept the probe.
        TypeError: ``num_heads`` is not a whole number or ``kept`` is not a tensor.
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
    if getattr(model, "head_gates", None) is not gates:
        raise InputError(
            f"These gates are not those of this {type(model).__name__}; pass the result of inject_gates(model)."
        )
    check_has_values(model)
    blocks = find_attention_blocks(model)
    check_no_adapters(model)
    gated = [block for block in blocks if block.name in gates.block_names]
    values = decide_gate_values(gates, num_heads=num_heads, kept=kept)
    warn_if_arbitrary(gates, values > 0, is_given=kept is not None)
    gates.attach_again()
    reference = _record_reference(model, gates, values, probe)
    num_heads_before = sum(block.num_heads for block in blocks)
    num_parameters_before = num_parameters(model) - gates.log_alpha.numel()

    difference = _remove_checked(model, gates, gated, values, reference)
    become_compact(model)
    kept_heads = {block.name: block.head_ids for block in find_attention_blocks(model)}
    return FinalizeReport(
        kept_heads=kept_heads,
        num_heads=sum(map(len, kept_heads.values())),
        num_heads_before=num_heads_before,
        num_parameters=num_parameters(model),
        num_parameters_before=num_parameters_before,
        max_difference=difference,
        folded=_folded_values(gated, values.split(gates.block_sizes), kept_heads),
    )


@dataclass(frozen=True)
class _Reference:
    """The masked model's outputs on the probe, and the largest relative difference that rounding explains."""

    probe: Mapping[str, Tensor]
    outputs: list[Tensor]
    tolerance: float


def _record_reference(
    model: nn.Module, gates: HeadGates, values: Tensor, probe: Mapping[str, Tensor] | None
) -> _Reference:
    """Run the masked model twice, the second time with all gates lower by one ulp to estimate its rounding error.

    Models that amplify rounding, such as T5 with its unscaled attention logits, get a wider tolerance.
    """
    with gates.fixed_at(values):
        probe, masked = run_probe(model, probe)
    if values.isnan().any() or any(tensor.isnan().any() for tensor in masked):
        raise InputError(
            "The model or its gates give NaN: training has diverged. Lower the learning rate, or train in float32."
        )
    eps = max(torch.finfo(tensor.dtype).eps for tensor in masked)
    with gates.fixed_at(values * (1 - eps)):
        sensitivity = min(1e-4, max_relative_difference(masked, forward_outputs(model, probe)))
    tolerance = max(*(tolerance_for(tensor.dtype) for tensor in masked), 30 * sensitivity)
    return _Reference(probe, masked, tolerance)


def _remove_checked(
    model: nn.Module, gates: HeadGates, blocks: list[AttentionBlock], values: Tensor, reference: _Reference
) -> float:
    """Fold the gates and remove closed heads; return the difference to the masked model, or restore everything."""
    edits = _plan(model, blocks, values.split(gates.block_sizes))
    gates.remove()
    done: list[Undo] = []
    try:
        done = apply_edits(edits)
        difference = max_relative_difference(reference.outputs, forward_outputs(model, reference.probe))
        if difference > reference.tolerance:
            raise OperationError(
                f"After removal the outputs differ from the masked model's by {difference:.1e}, more than the rounding "
                f"error of {reference.tolerance:.1e}: the layout of {type(blocks[0].module).__name__} is not described "
                "rightly. Nothing was changed."
            )
    except BaseException:
        undo_edits(done)
        gates.attach(model, blocks)
        raise
    return difference


def _plan(model: nn.Module, blocks: list[AttentionBlock], values: tuple[Tensor, ...]) -> list[Edit]:
    edits: list[Edit] = []
    kept = {}
    for block, block_values in zip(blocks, values, strict=True):
        slot_values = _slot_values(block, block_values)
        open_slots = slot_values.nonzero().flatten().tolist()
        kept[block.name] = {block.head_slots[slot] for slot in open_slots} & set(block.head_ids)
        # Folded before the removal, so closed heads need no factor of 0.
        factors = torch.where(slot_values > 0, slot_values, 1.0).repeat_interleave(block.head_dim)
        edits += plan_scale_inputs(block.output_projection, factors)
    return [*edits, *plan_pruning(model, blocks, kept)]


def _folded_values(
    blocks: list[AttentionBlock], values: tuple[Tensor, ...], kept_heads: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[float, ...]]:
    folded = {}
    for block, block_values in zip(blocks, values, strict=True):
        by_head = dict(zip(block.head_slots, _slot_values(block, block_values).tolist(), strict=True))
        folded[block.name] = tuple(by_head[head] for head in kept_heads[block.name])
    return folded


def _slot_values(block: AttentionBlock, values: Tensor) -> Tensor:
    """Expand a block's gate values, ``[num_gates]``, to its head slots, ``[num_slots]``."""
    return values.repeat_interleave(len(block.head_slots) // len(values))
