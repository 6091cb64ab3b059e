"""Removal of closed heads and neurons from a sharded model: one weight at a time is whole."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import cast

import torch
import torch.distributed
from torch import Tensor, nn
from transformers import PreTrainedModel

from gating.errors import InputError, UserError
from gating.gates import HeadGates
from gating.loader.saving import become_compact
from gating.objectives.base import Objective
from gating.proof.prove import MaskedOutputs, check_proven
from gating.pruning.empty_layers import empty_lists, layer_list, passing_layers, plan_biases, staying_layers
from gating.pruning.finalize import FinalizeReport, check_own_gates, checked_gate_values
from gating.pruning.layers import drop_layers
from gating.pruning.plan import folded_values, plan_finalizing
from gating.pruning.prune_report import UnitCounts
from gating.sharding.copies import meta_copy, shard_copy, shard_like, tensors_of
from gating.sharding.plan import check_same, is_sharded, reshard
from gating.structure.edits import Edit, whole


@torch.inference_mode(mode=False)
def finalize_sharded(
    model: PreTrainedModel,
    gates: HeadGates,
    objective: Objective | None = None,
    *,
    num_heads: int | None = None,
    num_neurons: int | None = None,
    kept: Tensor | None = None,
    probe: Mapping[str, Tensor] | None = None,
) -> tuple[PreTrainedModel, FinalizeReport]:
    """Return a sharded model without the units that :func:`gating.finalize` removes from a whole one, and its gates.

    Called by all processes. A copy of the model on the meta device takes over its shards; the weights of attention and
    feed-forward blocks are gathered, cut, and distributed again, one at a time. The outputs of the two are compared.

    Args:
        model: A model with gates, cut by :func:`~gating.sharding.plan.shard_model`, or loaded with its settings.
        gates: The gates of this model.
        objective: The objective that chooses the gates to keep, as in :func:`gating.finalize`.
        num_heads: Number of heads to keep, likewise.
        num_neurons: Number of neurons to keep, likewise.
        kept: Boolean mask of the gates to keep, ``[num_gates]``, instead of an objective and numbers.
        probe: Batch for the check, the same in all processes; by default made from the model's configuration.

    Returns:
        The compact model, cut over the same processes, and the report of :func:`gating.finalize`. The given model has
        lost its gates, and shares the shards that have not changed.

    Raises:
        ValueError: As :func:`gating.finalize`; or the model is not sharded.
        TypeError: As :func:`gating.finalize`.
        RuntimeError: Masked and compact outputs differ, or the processes have not decided alike. The given model and
            its gates are unchanged.
    """
    if not is_sharded(model):
        raise InputError(f"{type(model).__name__} is not sharded: call gating.finalize(model, gates).")
    check_own_gates(model, gates)
    reshard(model)
    values = checked_gate_values(model, gates, objective, num_heads=num_heads, num_neurons=num_neurons, kept=kept)
    check_same(values, "The value of the gates")
    by_block = values.split(gates.block_sizes)
    gated, before = gates.blocks(), UnitCounts.of(model)
    largest = partial(_largest_of_all, device=values.device)
    masked = MaskedOutputs(
        model,
        gated,
        by_block,
        masked=lambda factors: gates.fixed_at(torch.cat(list(factors))),
        probe=probe,
        largest=largest,
        free=reshard,
    )

    with torch.no_grad():
        compact = _without_units(model, gates, by_block)
    difference = check_proven(compact, masked)
    folded = folded_values(model, gated, by_block)
    report = FinalizeReport.of(
        compact, before, gated, max_difference=difference, folded=folded, unproven=masked.unproven
    )
    with torch.no_grad():
        compact = _without_empty_layers(compact, masked)
    gates.remove()
    return compact, report.without_layers(compact)


def _largest_of_all(number: float, device: torch.device) -> float:
    tensor = torch.tensor(number, device=device)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    return float(tensor)


def _without_units(model: PreTrainedModel, gates: HeadGates, values: Sequence[Tensor]) -> PreTrainedModel:
    """Return a sharded copy of a model that has lost the units of closed gates, with folded values of the others."""
    copy, tensors = meta_copy(model), tensors_of(model)
    _cut(copy, plan_finalizing(copy, gates.blocks(copy), values), tensors)
    become_compact(copy)
    shard_copy(copy, model, tensors)
    return copy


def _without_empty_layers(model: PreTrainedModel, masked: MaskedOutputs) -> PreTrainedModel:
    """Return a sharded model without the layers that ``remove_empty_layers`` takes out of a whole one."""
    for name in empty_lists(model):
        layers = layer_list(model, name)
        found = passing_layers(model, layers, [expected.probe for expected in masked.passes])
        # The processes have to decide alike.
        passing = [n for n in layers.empty() if not _largest_of_all(float(n not in found), model.device)]
        for numbers in (passing, *([number] for number in reversed(passing))):
            try:
                smaller = _without_layers(model, name, numbers)
                check_proven(smaller, masked)
            except UserError:
                continue
            model = smaller
            if numbers is passing:
                break
    return model


def _without_layers(model: PreTrainedModel, name: str, numbers: Sequence[int]) -> PreTrainedModel:
    """Return a sharded copy of a model without some layers of a list, whose biases go to the layers before them."""
    reshard(model)
    layers, copy, tensors = layer_list(model, name), meta_copy(model), tensors_of(model)
    kept, owners = staying_layers(layers, numbers), {id(module): owner for owner, module in model.named_modules()}
    for edit in plan_biases(layers, kept):
        tensors[f"{owners[id(edit.owner)]}.{edit.attribute}"] = shard_like(cast("Tensor", edit.value), tensors)
    drop_layers(copy, layer_list(copy, name), kept)
    become_compact(copy)
    start, moved = f"{layers.full_name}.", dict(tensors)
    for new in [*copy.state_dict(), *dict(copy.named_buffers())]:
        number, _, rest = new.removeprefix(start).partition(".")
        if new.startswith(start) and (former := f"{start}{kept[int(number)]}.{rest}") in tensors:
            moved[new] = tensors[former]
    shard_copy(copy, model, moved)
    return copy


def _cut(copy: PreTrainedModel, edits: Sequence[Edit], tensors: dict[str, Tensor]) -> None:
    """Apply the edits of a removal to a copy on the meta device, and to shards by the names of their parameters."""
    names = {id(parameter): name for name, parameter in copy.named_parameters()}
    last = {(id(edit.owner), edit.attribute): number for number, edit in enumerate(edits)}
    gathered: dict[tuple[int, str], str] = {}
    for number, edit in enumerate(edits):
        key = (id(edit.owner), edit.attribute)
        parameter = None if edit.kept is None else getattr(edit.owner, edit.attribute)
        if parameter is not None and parameter.is_meta:
            gathered[key] = names[id(parameter)]
            weight = nn.Parameter(whole(tensors[gathered[key]]), requires_grad=parameter.requires_grad)
            setattr(edit.owner, edit.attribute, weight)
        edit.apply()
        if key in gathered and last[key] == number:
            # The weight is cut again before the next one is gathered.
            weight = getattr(edit.owner, edit.attribute)
            tensors[gathered[key]] = shard_like(weight, tensors)
            setattr(edit.owner, edit.attribute, nn.Parameter(weight.to("meta"), requires_grad=weight.requires_grad))
