"""Budgets that are measured on the device: speedups, and the latency of units and blocks."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gating.distributed.collectives import broadcast, is_rank_zero
from gating.errors import InputError
from gating.gates import HeadGates
from gating.objectives import KeepsBudget
from gating.pruning.latency import CopyTimer, describe_batch
from gating.pruning.latency_costs import NUM_PASSES, LatencyCosts, kept_for_speedup, measure_latency_costs
from gating.run.build import RunObjects
from gating.run.data import RunData, set_measured_macs
from gating.run.run import Run, RunState
from gating.run.timing import RunTiming
from gating.sharding.copies import untrained_copy
from gating.sharding.plan import is_sharded
from gating.tracking.verbosity import printed_warnings

# Shares of the time that is left: for the timings before the search and after it. The rest is for the final ones.
_SHARE_BEFORE, _SHARE_AFTER = 0.5, 0.6
# Share of the time left that one choice of gates may take after the search; two or three are usual.
_SHARE_OF_CHOICE = 0.4
# A training step takes about as long as so many forward passes.
_PASSES_OF_STEP = 3


def measure_budget(
    objects: RunObjects,
    state: RunState,
    data: RunData,
    speedups: Sequence[float],
    *,
    timing: RunTiming,
    device: torch.device,
    known: dict[str, Any] | None,
    batches: int,
) -> dict[str, Any]:
    """Return the settings of the objective that reach speedups on this device; a resumed run keeps those it has.

    A speedup becomes a share of the latency of all gated units and their blocks, and ``objective.cost=latency`` the
    measured costs. With several speedups ``sizes`` has the share of each, or the reason why it cannot be reached. The
    run takes ``batches`` for training, in this process.
    """
    budget = known or {}
    if known is None and is_rank_zero():
        model = untrained_copy(state.model) if is_sharded(state.model) else state.model.to(device)  # type: ignore[arg-type]
        gates = objects.gates_without_model(model)
        if len(gates.units) > 1:
            set_measured_macs(gates, model, data)
        # These are the examples of all steps, in one process.
        num_examples = batches * data.module.batch_size
        with state.summary.timed("latency"):
            budget = _measure(model, gates, speedups, timing, num_examples=num_examples)
    return broadcast(budget)


def _measure(
    model: PreTrainedModel, gates: HeadGates, speedups: Sequence[float], timing: RunTiming, *, num_examples: int
) -> dict[str, Any]:
    """Return the settings of a budget for a run of ``num_examples`` in this process, and print it."""
    num_passes = _PASSES_OF_STEP * num_examples / timing.settings.batch_size
    batch = timing.fitted_batch(model, passes=NUM_PASSES, run_seconds=lambda one_pass: num_passes * one_pass)
    with _timer(model, batch, timing, title="Compact copies are timed on this device", share=_SHARE_BEFORE) as timer:
        costs = measure_latency_costs(gates, timer)
    budget: dict[str, Any] = {"cost": costs.rates(gates)}
    found = ",".join(f"{unit}:{rate}" for unit, rate in budget["cost"].items())
    if len(speedups) > 1:
        budget["sizes"] = {str(speedup): _share_for(speedup, costs, gates) for speedup in speedups}
        smallest_of(budget)
    for speedup in speedups if "sizes" not in budget else ():
        budget["keep"] = costs.keep_for(speedup, gates)
        print(f"{speedup} times as fast: objective.keep={budget['keep']}", end=" ")
    print(f"'objective.cost={{{found}}}'", flush=True)
    return budget


def _share_for(speedup: float, costs: LatencyCosts, gates: HeadGates) -> float | str:
    """Return the share of the cost for a speedup, or the reason why it cannot be reached."""
    try:
        return costs.keep_for(speedup, gates)
    except InputError as error:
        return str(error)


def measured_for(budget: Mapping[str, Any], speedup: object) -> dict[str, Any]:
    """Return the measured settings of the objective for one of several sizes; ``InputError`` if it has none."""
    found = {name: value for name, value in budget.items() if name != "sizes"}
    share = budget.get("sizes", {}).get(str(speedup))
    if isinstance(share, str):
        raise InputError(share)
    return found if share is None else {**found, "keep": share}


def smallest_of(budget: Mapping[str, Any]) -> dict[str, Any]:
    """Return the measured settings of the objective for the smallest size that can be reached."""
    shares = {speedup: share for speedup, share in budget.get("sizes", {}).items() if not isinstance(share, str)}
    if budget.get("sizes") and not shares:
        raise InputError(next(iter(budget["sizes"].values())))
    smallest = min(shares, key=shares.__getitem__, default="")
    return measured_for(budget, smallest)


@contextmanager
def _timer(
    model: PreTrainedModel, batch: Mapping[str, Tensor], timing: RunTiming, *, title: str, share: float
) -> Iterator[CopyTimer]:
    """Time copies of a model in a ``with`` block."""
    with timing.stage(share=share) as seconds:
        shape = describe_batch(batch, length=timing.length)
        print(f"{title}: {shape}, for at most {seconds:.0f} s ...", flush=True)
        yield CopyTimer(model, batch, seconds=seconds, length=timing.length)


def kept_at_speedup(run: Run, objective: KeepsBudget, gates: HeadGates) -> Tensor:
    """Return the gates that stay for the speedup of a run, timed as compact copies on rank 0; equal on all ranks."""
    speedup = run.objects.budget["speedup"]
    assert speedup is not None
    # Rankings synchronize ranks, so that each chooses; some read the weights of the gated blocks.
    choose = partial(objective.kept_at, gates)
    # One process times a whole model of the shapes of one that is cut over several.
    whole = untrained_copy(run.state.model) if run.is_sharded and is_rank_zero() else None
    without_gates: Callable[[], Any] = gates.detached if whole is None else partial(nullcontext, whole)
    with ExitStack() as stack:
        timer = stack.enter_context(_timer_after_search(run, without_gates, speedup)) if is_rank_zero() else None

        def measure(kept: Tensor) -> tuple[float, float, bool]:
            reached = 0.0, 0.0, True
            if timer is not None:
                with without_gates():
                    reached = timer.try_choice(gates, kept, share=_SHARE_OF_CHOICE)
            return broadcast(reached)

        with printed_warnings():
            return kept_for_speedup(choose, measure, speedup=speedup, keep=run.objects.budget["keep"])


@contextmanager
def _timer_after_search(run: Run, without_gates: Callable[[], Any], speedup: float) -> Iterator[CopyTimer]:
    """Time choices of gates, with the model that ``without_gates`` yields, and print the closest one at the end."""
    timing, elapsed = run.timing, time.monotonic() - run.started
    with run.state.summary.timed("latency"):
        with without_gates() as model:
            batch = timing.fitted_batch(model, passes=NUM_PASSES, run_seconds=lambda _: elapsed)
        title = f"Compact copies are timed until one is {speedup} times as fast"
        with _timer(model, batch, timing, title=title, share=_SHARE_AFTER) as timer:
            yield timer
    timer.print_closest(speedup)
