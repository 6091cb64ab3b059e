"""Removal of the heads and neurons whose gates are closed: decide, fold, remove, verify."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gating.errors import InputError
from gating.gates import HeadGates
from gating.loader.saving import become_compact
from gating.objectives.base import Objective
from gating.proof.conditions import check_has_values, check_no_adapters, check_whole
from gating.proof.masked import MaskedOutputs
from gating.proof.prove import apply_proven
from gating.pruning.decide import decide_gate_values, warn_if_arbitrary
from gating.pruning.empty_layers import remove_empty_layers
from gating.pruning.plan import folded_values, plan_finalizing
from gating.pruning.prune_report import PruneReport, UnitCounts
from gating.structure.blocks import Block
from gating.structure.edits import Undo, undo_edits

__all__ = [
    "FinalizeReport",
    "check_own_gates",
    "checked_gate_values",
    "finalize",
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

    def __str__(self) -> str:
        """Return the table of the removal, and how exact it is."""
        return f"{super().__str__()}\nThe outputs differ from those of the masked model by {self.max_difference:.1e}."


def finalize(
    model: nn.Module,
    gates: HeadGates,
    objective: Objective | None = None,
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
            attached to the gates.
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
        >>> print(finalize(model, gates))  # doctest: +ELLIPSIS
        encoder.layer.0.attention.self    2 heads  0 3
        encoder.layer.1.attention.self     1 head  2
        heads                           3 of 8 (37.5 %)
        neurons                         6,144 of 6,144 (100.0 %)
        parameters                      109,034 of 109,384 (99.7 %)
        The outputs differ from those of the masked model by ...
    """
    check_own_gates(model, gates)
    check_whole(model, remedy="call gating.sharding.finalize_sharded(model, gates)")
    values = checked_gate_values(model, gates, objective, num_heads=num_heads, num_neurons=num_neurons, kept=kept)
    by_block = values.split(gates.block_sizes)
    gated, before = gates.blocks(), UnitCounts.of(model)
    masked = record_masked(model, gates, gated, by_block, probe)
    edits, folded = plan_finalizing(model, gated, by_block), folded_values(model, gated, by_block)
    gates.remove()
    done: list[Undo] = []
    try:
        done, difference = apply_proven(model, edits, masked)
        report = FinalizeReport.of(
            model, before, gated, max_difference=difference, folded=folded, unproven=masked.unproven
        )
        remove_empty_layers(model, masked)
    except BaseException:
        undo_edits(done)
        gates.attach(model, gated)
        raise
    become_compact(model)
    return report.without_layers(model)


def checked_gate_values(
    model: nn.Module,
    gates: HeadGates,
    objective: Objective | None,
    *,
    num_heads: int | None,
    num_neurons: int | None,
    kept: Tensor | None,
) -> Tensor:
    """Check that a model can lose units, and return the final values of its gates, ``[num_gates]``; 0 for closed ones.

    The arguments and errors are those of :func:`finalize`.
    """
    check_has_values(model)
    check_no_adapters(model)
    values = decide_gate_values(gates, objective, num_heads=num_heads, num_neurons=num_neurons, kept=kept)
    warn_if_arbitrary(gates, values > 0, is_given=kept is not None)
    gates.attach_again()
    return values


def check_own_gates(model: nn.Module, gates: HeadGates) -> None:
    """Raise ``ValueError`` for gates of another model."""
    if gates is None or getattr(model, "head_gates", None) is not gates:
        raise InputError(
            f"These gates are not those of this {type(model).__name__}; pass the result of inject_gates(model)."
        )


def record_masked(
    model: nn.Module,
    gates: HeadGates,
    blocks: Sequence[Block],
    values: Sequence[Tensor],
    probe: Mapping[str, Tensor] | None,
    *,
    largest: Callable[[float], float] = float,
    free: Callable[[nn.Module], object] | None = None,
) -> MaskedOutputs:
    """Record the outputs of a model with the gates of each block at their final values."""
    return MaskedOutputs(
        model,
        blocks,
        values,
        masked=lambda factors: gates.fixed_at(torch.cat(list(factors))),
        probe=probe,
        largest=largest,
        free=free,
    )
