"""From gates to a smaller model: decide, fold, remove, prove."""

import numbers
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gating.discovery.find import find_attention_blocks
from gating.discovery.probe import forward_outputs, max_relative_difference, run_probe, tolerance_for
from gating.discovery.refusals import check_has_values, check_no_adapters
from gating.errors import InputError, InputTypeError, OperationError, RemedyError, RemedyWarning
from gating.gates import HeadGates
from gating.objectives.selection import check_reachable, select_gates
from gating.pruning.prune import PruneReport, num_parameters, plan_pruning
from gating.structure.blocks import AttentionBlock
from gating.structure.compact import become_compact
from gating.structure.edits import Edit, Undo, apply_edits, undo_edits
from gating.structure.linear import plan_scale_inputs

__all__ = ["FinalizeReport", "decide_gate_values", "finalize"]

# Between the mean values of the gates to keep and of those to remove.
_LEAST_GAP = 0.1


@dataclass(frozen=True)
class FinalizeReport(PruneReport):
    """What finalizing did: a :class:`PruneReport` and the proof.

    Attributes:
        max_difference: Largest relative difference between the outputs of the masked and of the compact model on
            the probe batch.
        folded: For each block that had gates, what was multiplied into the columns of its kept heads, in the order of
            ``kept_heads``.
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
    """Turn closed gates into physical removal, in place.

    Decides which heads stay, multiplies the fractional gate values of those into their columns of the output
    projection, removes gates and heads, and checks that the compact model computes what the masked one did.

    Args:
        model: A model with gates from :func:`~gating.gates.inject_gates`.
        gates: Those gates.
        num_heads: Keep exactly so many heads, those with the largest ``log_alpha``; the heads whose gate is open
            when left out.
        kept: Keep exactly the gates that are true here, ``[num_gates]``, instead: what an objective's ``kept`` gives.
        probe: A batch as the model's keyword arguments, for the check; made from the model's configuration when
            left out.

    Returns:
        What was kept and how far masked and compact outputs differ.

    Raises:
        ValueError: ``num_heads`` is out of range, or gates for groups of heads cannot keep exactly so many, or no
            gate is open, or the gates are another model's, or something is NaN, or ``kept`` does not fit, or adapters
            have not been merged, or the model has no weights yet, or does not run on the probe.
        TypeError: ``num_heads`` is not a whole number, or ``kept`` not a tensor.
        RuntimeError: Masked and compact outputs disagree. The model is as it was before, gates included.
    """
    if getattr(model, "head_gates", None) is not gates:
        raise InputError(
            f"These gates are not those of this {type(model).__name__}; pass what inject_gates(model) gave."
        )
    check_has_values(model)
    blocks = find_attention_blocks(model)
    check_no_adapters(model)
    gated = [block for block in blocks if block.name in gates.block_names]
    values = decide_gate_values(gates, num_heads=num_heads, kept=kept)
    _warn_if_alike(gates, values > 0, is_given=kept is not None)
    gates.attach_again()
    probe, masked, tolerance = _masked_outputs(model, gates, values, probe)
    heads_before = sum(block.num_heads for block in blocks)
    parameters_before = num_parameters(model) - gates.log_alpha.numel()

    edits = _plan(model, gated, values.split(gates.block_sizes))
    gates.remove()
    done: list[Undo] = []
    try:
        done = apply_edits(edits)
        difference = max_relative_difference(masked, forward_outputs(model, probe))
        _check_difference(difference, tolerance, gated[0])
    except BaseException:
        undo_edits(done)
        gates.attach(model, gated)
        raise
    become_compact(model)
    kept_heads = {block.name: block.head_ids for block in find_attention_blocks(model)}
    folded = {}
    for block, block_values in zip(gated, values.split(gates.block_sizes), strict=True):
        by_head = dict(zip(block.head_slots, _slot_values(block, block_values).tolist(), strict=True))
        folded[block.name] = tuple(by_head[head] for head in kept_heads[block.name])
    return FinalizeReport(
        kept_heads=kept_heads,
        num_heads=sum(map(len, kept_heads.values())),
        num_heads_before=heads_before,
        num_parameters=num_parameters(model),
        num_parameters_before=parameters_before,
        max_difference=difference,
        folded=folded,
    )


def _masked_outputs(
    model: nn.Module, gates: HeadGates, values: Tensor, probe: Mapping[str, Tensor] | None
) -> tuple[Mapping[str, Tensor], list[Tensor], float]:
    """Return the probe, the model's outputs for it with given gate values, and how far rounding may change them.

    A model that makes much of little, as T5 does without scaling its attention, shows it when its gates are changed by
    one rounding.
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
    return probe, masked, max(*(tolerance_for(tensor.dtype) for tensor in masked), 30 * sensitivity)


def _warn_if_alike(gates: HeadGates, kept: Tensor, *, is_given: bool) -> None:
    """Warn that gates do not tell the heads that stay from those that are removed, as where nobody has trained them."""
    values = gates.values().detach()
    removed = ~kept
    num_kept, num_removed, num_open = int(kept.sum()), int(removed.sum()), int((values > 0).sum())
    if not num_removed:
        return
    arbitrary = "The choice of heads is nearly arbitrary"
    if 2 * num_open <= num_kept:
        problem = f"{arbitrary}: of {num_kept} heads or groups to keep, {num_open} have an open gate."
        python, command = " Keep fewer, or lower the price of the penalty.", " Keep fewer, or lower objective.price."
        warnings.warn(RemedyWarning(problem, python=python, command=command), stacklevel=3)
        return
    mean_kept, mean_removed = float(values[kept].mean()), float(values[removed].mean())
    num_alike = int((removed & (values > mean_kept - _LEAST_GAP)).sum())
    if mean_kept - mean_removed < _LEAST_GAP or num_open > 2 * num_kept or 2 * num_alike >= min(num_kept, num_removed):
        numbers = (
            f"the gates to keep ({num_kept}) are at {mean_kept:.2f} on average, those to remove ({num_removed}) at "
            f"{mean_removed:.2f}, of which {num_alike} are no more than {_LEAST_GAP} below the former, and {num_open} "
            "of all are open."
        )
        python = f"{arbitrary}: {numbers} Train"
        if is_given:
            python = f"Gates hardly tell the heads to keep: {numbers} Unless they were chosen without gates, train"
        warning = RemedyWarning(
            "",
            python=f"{python} the gates longer or with a larger learning rate, such as 0.1, and call the objective's "
            "update before every step.",
            command=f"{arbitrary}: {numbers} Train longer (trainer.max_epochs) or with a larger optimizer.gate_lr.",
        )
        warnings.warn(warning, stacklevel=3)


def _check_difference(difference: float, tolerance: float, block: AttentionBlock) -> None:
    if difference > tolerance:
        raise OperationError(
            f"After removal the outputs differ from the masked model's by {difference:.1e}, more than the rounding "
            f"error of {tolerance:.1e}: the layout of {type(block.module).__name__} is not described rightly. "
            "Nothing was changed."
        )


def decide_gate_values(gates: HeadGates, *, num_heads: int | None = None, kept: Tensor | None = None) -> Tensor:
    """Return the final value of every gate, ``[num_gates]``: zero for heads to remove, else what to fold in.

    Args:
        gates: Trained gates.
        num_heads: How many heads stay, those with the largest ``log_alpha``; all open ones when left out.
        kept: Which gates stay, ``[num_gates]``, instead.

    Raises:
        ValueError: ``num_heads`` is out of range, or gates for groups of heads cannot keep exactly so many, or no
            gate is open, or ``kept`` does not fit.
    """
    values = gates.values().detach()
    if kept is not None:
        _check_kept(gates, kept, num_heads)
    elif num_heads is not None:
        kept = _largest(gates, num_heads)
    else:
        if not values.any():
            raise RemedyError(
                "Every gate is closed, so no head would be left. Lower ",
                python="the price, or give num_heads.",
                command="objective.price, or give a number of heads with objective=budget.",
            )
        return values
    # A head that is kept for the count's sake though its gate reads 0 would be dead: it comes in as strongly as it
    # was on average in training.
    return kept * torch.where(values > 0, values, gates.prob_open().detach())


def _largest(gates: HeadGates, num_heads: int) -> Tensor:
    if isinstance(num_heads, bool) or not isinstance(num_heads, numbers.Integral):
        raise InputTypeError(f"num_heads must be a whole number, got {num_heads!r}.")
    if not 1 <= num_heads <= gates.num_heads:
        raise InputError(f"num_heads={num_heads} cannot be kept: there are {gates.num_heads} gated heads.")
    check_reachable(num_heads, gates.heads_per_gate)
    kept = torch.zeros_like(gates.log_alpha, dtype=torch.bool)
    kept[select_gates(gates.log_alpha.detach(), gates.heads_per_gate, num_heads)] = True
    return kept


def _check_kept(gates: HeadGates, kept: Tensor, num_heads: int | None) -> None:
    if num_heads is not None:
        raise InputError("Give either num_heads or kept, not both.")
    if not isinstance(kept, Tensor):
        raise InputTypeError(f"kept must be a tensor of truth values, one for each gate; got a {type(kept).__name__}.")
    if kept.dtype != torch.bool or kept.shape != gates.log_alpha.shape:
        raise InputError(
            f"kept must be {gates.log_alpha.numel()} truth values, one for each gate; got {kept.dtype} of shape "
            f"{tuple(kept.shape)}."
        )
    if not kept.any():
        raise InputError("kept is false for every gate, so no head would be left.")


def _slot_values(block: AttentionBlock, values: Tensor) -> Tensor:
    """Repeat the values of a block's gates: a gate of a group of query heads stands for several slots."""
    return values.repeat_interleave(len(block.head_slots) // len(values))


def _plan(model: nn.Module, blocks: list[AttentionBlock], values: tuple[Tensor, ...]) -> list[Edit]:
    edits: list[Edit] = []
    kept = {}
    for block, block_values in zip(blocks, values, strict=True):
        slot_values = _slot_values(block, block_values)
        open_slots = slot_values.nonzero().flatten().tolist()
        kept[block.name] = {block.head_slots[slot] for slot in open_slots} & set(block.head_ids)
        # Before the cut, and only what stays: closed gates need no multiplication by zero.
        factors = torch.where(slot_values > 0, slot_values, 1.0).repeat_interleave(block.head_dim)
        edits += plan_scale_inputs(block.output_projection, factors)
    return [*edits, *plan_pruning(model, blocks, kept)]
