"""Budgets that are measured on the device: speedups, and the latency of heads and neurons."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gating.distributed.collectives import broadcast, is_rank_zero
from gating.errors import InputError
from gating.gates import HeadGates
from gating.objectives import HasMovableBudget, Objective
from gating.pruning.latency_costs import kept_for_speedup, measure_latency_costs, time_kept
from gating.pruning.macs import measure_macs
from gating.pruning.speedup import num_heads_for_speedup
from gating.run.folder.stored_settings import read_settings_of
from gating.run.objects import RunObjects
from gating.run.run import Run, RunData
from gating.run.settings.build import make_objective
from gating.run.settings.settings import Settings
from gating.sharding.plan import is_sharded, reshard
from gating.sharding.twin import untrained_copy

__all__ = ["count_macs", "kept_gates", "with_measured_budget"]

# Settings of the objective that a measurement fills in.
_MEASURED = ("num_heads", "keep", "cost")


def with_measured_budget(
    settings: Settings,
    objects: RunObjects,
    model: PreTrainedModel,
    data: RunData,
    *,
    device: torch.device,
    resumes: bool,
) -> tuple[Settings, RunObjects]:
    """Replace a speedup by the budget that reaches it on this device; a resumed run keeps its budget.

    A speedup by heads alone becomes a number of heads. With neurons, it becomes a share of the latency of all gated
    units, and ``objective.cost=latency`` the measured costs.
    """
    objective = settings.values["objective"]
    if not objective.get("speedup") and objective.get("cost") != "latency":
        return settings, objects
    budget: dict[str, Any] = {}
    if resumes:
        stored = read_settings_of(settings.paths.folder)["objective"]
        budget = {name: stored[name] for name in _MEASURED if stored.get(name) is not None}
    elif is_rank_zero():
        model = untrained_copy(model) if is_sharded(model) else model.to(device)  # type: ignore[arg-type]
        probe = {name: tensor.to(device) for name, tensor in data.module.probe_batch().items()}
        gates = objects.gates_without_model(model)
        if gates.num_neurons:
            count_macs(gates, model, data)
            budget = _measure_costs(model, gates, probe, objective)
        else:
            budget = _measure_heads(model, gates, probe, speedup=objective.get("speedup"))
    settings = settings.with_budget(broadcast(budget))
    return settings, replace(objects, objective=make_objective(settings.values["objective"]))


def _measure_heads(
    model: PreTrainedModel, gates: HeadGates, probe: Mapping[str, Tensor], *, speedup: float | None
) -> dict[str, Any]:
    if speedup is None:
        raise InputError("objective.cost=latency needs gates on neurons, too: give gates.units=[heads,neurons].")
    num_heads = num_heads_for_speedup(model, probe, speedup=speedup, gates=gates)
    print(f"{num_heads} heads, evenly spread over its layers, make the model {speedup} times as fast here.")
    return {"num_heads": num_heads}


def _measure_costs(
    model: PreTrainedModel, gates: HeadGates, probe: Mapping[str, Tensor], objective: Mapping[str, Any]
) -> dict[str, Any]:
    speedup = objective.get("speedup")
    if "cost" not in objective:
        raise InputError(f"objective.speedup={speedup} needs a cost: give objective.cost=latency.")
    print("Compact copies are timed on this device ...", flush=True)
    costs = measure_latency_costs(model, gates, probe)
    print(
        f"Of the model's time here, {costs.heads:.0%} are its gated heads, {costs.neurons:.0%} its gated neurons, "
        f"{costs.fixed:.0%} the rest."
    )
    budget: dict[str, Any] = {"cost": costs.rates(gates)}
    if speedup:
        budget["keep"] = costs.keep_for(speedup)
        print(f"With {budget['keep']:.0%} of the time of its gated units, it is {speedup} times as fast.")
    return budget


def count_macs(gates: HeadGates, model: PreTrainedModel, data: RunData) -> None:
    """Set the multiply-accumulates of gates of heads and neurons, for training examples of the median length."""
    if len(gates.units) == 1:
        return  # Numbers of heads or of neurons need none.
    batch = {name: tensor.to(model.device) for name, tensor in data.module.median_batch().items()}
    gates.set_macs(measure_macs(model, gates, gates.blocks(model), batch))
    reshard(model)


def kept_gates(run: Run, objective: Objective, gates: HeadGates) -> Tensor | None:
    """Return the gates that stay after the search, equal on all ranks; None for the open ones.

    With a speedup of neurons, compact copies are timed on rank 0, and the budget is moved until the choice has it.
    """
    settings = run.settings.values["objective"]
    speedup = settings.get("speedup")
    if not speedup or not gates.num_neurons or not isinstance(objective, HasMovableBudget):
        return objective.kept(gates)
    probe = run.probe_batch()
    if is_rank_zero():
        print(f"Compact copies are timed until one is {speedup} times as fast ...", flush=True)

    timed = untrained_copy(run.state.model) if run.is_sharded and is_rank_zero() else None

    def measure(kept: Tensor) -> float:
        if run.is_sharded:
            return broadcast(0.0 if timed is None else time_kept(timed, gates, kept, probe))
        with gates.detached() as model:
            return broadcast(time_kept(model, gates, kept, probe) if is_rank_zero() else 0.0)

    # Rankings synchronize ranks, so that each chooses; some read the weights of the gated blocks.
    choose = partial(objective.kept_at, gates)
    return kept_for_speedup(choose, measure, speedup=speedup, keep=settings["keep"])
