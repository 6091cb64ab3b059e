"""Budgets of a trainer as plain numbers, and the speed-up, timed with its first batch by its first process."""

import inspect
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import PreTrainedModel

from gating.errors import InputError
from gating.gates import HeadGates
from gating.integrations.wrappers import adapter_config, base_model, is_sentence_model, merged
from gating.objectives import ExactBudget, Objective
from gating.pruning.latency import MAX_SECONDS, CopyTimer, TimeBudget, describe_batch
from gating.pruning.latency_costs import NUM_PASSES, budget_for_speedup, kept_for_speedup

# Share of the time that is left after a search which each timed choice of gates may take.
_SHARE_OF_CHOICE = 0.3


def check_budget(**budgets: object) -> None:
    """Raise ``InputError`` unless exactly one budget is given."""
    if sum(budget is not None for budget in budgets.values()) != 1:
        raise InputError(f"Give one of {', '.join(f'{name}=' for name in budgets)}.")


def measured_budget(trainer: Any, speedup: float, gate_options: Mapping[str, Any]) -> Objective:
    """Return the objective of a speed-up, measured by the first process."""
    batch, measured = _model_batch(trainer), None
    if trainer.args.process_index == 0:
        model = merged(trainer.model if adapter_config(trainer.model) is None else deepcopy(trainer.model))
        words = f"{describe_batch(batch)}, for at most {MAX_SECONDS:.0f} s"
        print(f"Compact copies are timed on this device: {words} ...", flush=True)
        measured = budget_for_speedup(model, batch, speedup=speedup, **gate_options).measured
    objective = ExactBudget()
    objective.take_measured(broadcast_object_list([measured])[0])
    return objective


def kept_at_speedup(trainer: Any, model: PreTrainedModel, gates: HeadGates, speedup: float) -> tuple[Tensor, float]:
    """Return the gates that stay for a speed-up, ``[num_gates]``, and the speed-up of a model without adapters."""
    objective: Any = gates.objective
    batch, found = _model_batch(trainer), None
    if trainer.args.process_index == 0:
        budget = TimeBudget(MAX_SECONDS)
        with gates.detached():
            batch = budget.fit(model, batch, passes=NUM_PASSES)
            print(f"Copies are timed until one is {speedup} times as fast: {describe_batch(batch)} ...", flush=True)
            with budget.stage() as seconds:
                timer = CopyTimer(model, batch, seconds=seconds)
                choose = partial(objective.kept_at, gates)
                measure = partial(timer.try_choice, gates, share=_SHARE_OF_CHOICE)
                kept = kept_for_speedup(choose, measure, speedup=speedup, keep=objective.measured["keep"])
        found = kept.cpu(), timer.print_closest(speedup)
    shared: tuple[Tensor, float] = broadcast_object_list([found])[0]
    return shared


def _model_batch(trainer: Any) -> dict[str, Tensor]:
    """Return the first batch of a trainer as keyword arguments of its model, without labels."""
    # The order of the data in the training is as without timings.
    with torch.random.fork_rng(devices=[]):
        batch: dict[str, Any] = next(iter(trainer.get_train_dataloader()))
    if is_sentence_model(trainer.model):
        columns = {name: one for name, one in batch.items() if name not in ("dataset_name", "prompt", "task")}
        batch, *others = trainer.collect_features(columns)[0]
        if isinstance(batch, list):  # A cross-encoder reads pairs of texts.
            preprocess: Any = trainer.model.preprocess
            batch = preprocess([*zip(batch, *others, strict=True)])
    model = base_model(trainer.model)
    accepted = set(inspect.signature(model.forward).parameters) - set(trainer.label_names or ()) - {"labels"}
    return {
        name: value.to(model.device) for name, value in batch.items() if name in accepted and isinstance(value, Tensor)
    }
