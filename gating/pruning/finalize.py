"""Removal of the heads and neurons whose gates are closed: decide, fold, remove, verify."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from operator import index
from typing import Any

import torch
from torch import Tensor, nn

from gating.errors import InputError, InputTypeError
from gating.gates import HeadGates
from gating.loader.saving import become_compact
from gating.objectives.base import Objective
from gating.objectives.budget import HeadBudget
from gating.proof.conditions import check_has_values, check_no_adapters, check_whole
from gating.proof.prove import MaskedOutputs, apply_proven
from gating.pruning.empty_layers import remove_empty_layers
from gating.pruning.plan import folded_values, plan_finalizing
from gating.pruning.prune_report import PruneReport, UnitCounts
from gating.structure.edits import Undo, undo_edits
from gating.units import UnitName

# Smallest difference between the mean values of kept and of removed gates that counts as a decision.
_LEAST_GAP = 0.1
# Probability to be open below which a gate was decided to be closed.
_LEAST_STRENGTH = 1e-3


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


@torch.inference_mode(mode=False)  # Inference tensors could not be trained.
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
        TypeError: ``kept`` is not a tensor.
        RuntimeError: Masked and compact outputs differ. The model and its gates are unchanged; a search that ranks by
            hooks has to begin anew.

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
    masked = MaskedOutputs(
        model, gated, by_block, masked=lambda factors: gates.fixed_at(torch.cat(list(factors))), probe=probe
    )
    edits, folded = plan_finalizing(model, gated, by_block), folded_values(model, gated, by_block)
    gates.remove()
    done: list[Undo] = []
    try:
        done, difference = apply_proven(model, edits, masked)
        report = FinalizeReport.of(
            model, before, gated, max_difference=difference, folded=folded, unproven=masked.unproven
        )
        done += remove_empty_layers(model, masked)
        become_compact(model)
    except BaseException:
        undo_edits(done)
        gates.attach(model, gated)
        raise
    return report.without_layers(model)


def checked_gate_values(model: nn.Module, gates: HeadGates, objective: Objective | None, **choice: Any) -> Tensor:
    """Check that a model can lose units, and return the final values of its gates, ``[num_gates]``, 0 if closed."""
    check_has_values(model)
    check_no_adapters(model)
    values = decide_gate_values(gates, objective, **choice)
    _warn_if_arbitrary(gates, values > 0)
    gates.attach_again()
    return values


def check_own_gates(model: nn.Module, gates: HeadGates) -> None:
    """Raise ``ValueError`` for gates of another model."""
    if gates is None or getattr(model, "head_gates", None) is not gates:
        raise InputError(
            f"These gates are not those of this {type(model).__name__}; pass the result of inject_gates(model)."
        )


def decide_gate_values(
    gates: HeadGates,
    objective: Objective | None = None,
    *,
    num_heads: int | None = None,
    num_neurons: int | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """Return the final value of every gate, ``[num_gates]``: 0 to remove its units, else the factor to fold in."""
    values = gates.values().detach()
    given = {"heads": num_heads, "neurons": num_neurons}
    # Integers of NumPy and PyTorch, too; the budget refuses what is none.
    numbers = {unit: index(one) if hasattr(one, "__index__") else one for unit, one in given.items() if one is not None}
    if kept is not None:
        others = [f"num_{unit}" for unit in gates.units] if numbers else []
        _check_kept(gates, kept, others=others or ([] if objective is None else ["an objective"]))
    else:
        kept = _choice_of(objective, gates, numbers)
    if kept is None and not numbers:
        if not values.any():
            raise InputError(
                "Every gate is closed, so nothing would be left: lower the price, or give "
                f"{' and '.join(f'num_{unit}' for unit in gates.units)}."
            )
        return values
    if kept is None:
        # Units without a number stay as their gates are.
        kept = values > 0
        for unit, number in numbers.items():
            budget = HeadBudget(**{f"num_{unit}": number})  # type: ignore[arg-type]
            kept = torch.where(gates.is_of(unit).to(kept.device), budget.choose(gates, gates.log_alpha), kept)
    # A kept head with a closed gate would output zeros: it gets its average strength in training instead. One that was
    # decided to be closed, and is kept by another budget than that of the search, has the strength that it had before.
    average = gates.prob_open().detach()
    strength = torch.where(average < _LEAST_STRENGTH, 1.0, average)
    return kept.to(values.device) * torch.where(values > 0, values, strength)


def _choice_of(objective: Objective | None, gates: HeadGates, numbers: Mapping[UnitName, int]) -> Tensor | None:
    """Return the gates that an objective keeps, ``[num_gates]``; None if numbers or the gates themselves decide."""
    objective = gates.objective if objective is None else objective
    if objective is None:
        return None
    chosen = objective.kept(gates)
    if chosen is None or (numbers and not gates.values().any() and math.isnan(objective.target(gates))):
        return None  # A price on gates sets no number.
    _check_kept(gates, chosen, name=f"{type(objective).__name__}.kept(gates)")
    for unit, number in numbers.items():
        total = sum(compress(gates.counts[unit], chosen.tolist()))
        if number != total:
            raise InputError(
                f"num_{unit}={number} contradicts the objective of these gates: {type(objective).__name__}"
                f"({objective.extra_repr()}) keeps {total} {unit}. Leave num_{unit} out, or search with it."
            )
    return chosen


def _check_kept(gates: HeadGates, kept: Tensor, *, others: Sequence[str] = (), name: str = "kept") -> None:
    if others:
        raise InputError(f"Give either {' and '.join(others)} or kept, not both.")
    if not isinstance(kept, Tensor):
        raise InputTypeError(f"{name} must be a boolean tensor, one entry for each gate; got a {type(kept).__name__}.")
    if kept.dtype != torch.bool or kept.shape != gates.log_alpha.shape:
        raise InputError(
            f"{name} must be a boolean tensor of shape {tuple(gates.log_alpha.shape)}, one entry for each gate; got "
            f"{kept.dtype} of shape {tuple(kept.shape)}."
        )
    if not kept.any():
        raise InputError(f"{name} is false for every gate, so nothing would be left.")


def _warn_if_arbitrary(gates: HeadGates, kept: Tensor) -> None:
    """Warn if the values hardly separate the gates to keep from the others."""
    for unit in gates.units:
        of_unit = gates.is_of(unit).to(kept.device)
        values, stays = gates.values().detach()[of_unit], kept[of_unit]
        num_kept, num_removed, num_open = int(stays.sum()), int((~stays).sum()), int((values > 0).sum())
        if not num_removed or not num_kept:
            continue
        mean_kept, mean_removed = float(values[stays].mean()), float(values[~stays].mean())
        num_alike = int((~stays & (values > mean_kept - _LEAST_GAP)).sum())
        are_few, are_alike = 2 * num_open <= num_kept, 2 * num_alike >= min(num_kept, num_removed)
        if not (are_few or are_alike or num_open > 2 * num_kept or mean_kept - mean_removed < _LEAST_GAP):
            continue
        price = "keep fewer, or lower a fixed price" if are_few else "use a larger learning rate of the gates"
        warnings.warn(
            f"The choice of {unit} is nearly arbitrary: the gates to keep ({num_kept}) are at {mean_kept:.2f} "
            f"on average, those to remove ({num_removed}) at {mean_removed:.2f}, and {num_open} of all are "
            f"open. Unless they were chosen without gates, train for more steps, or {price} (in a command: "
            "trainer.max_steps, optimizer.gate_lr, objective.price); in a loop of your own, call the objective's "
            "update before each step.",
            stacklevel=5,
        )
