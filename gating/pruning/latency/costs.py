"""Latency of heads and neurons, measured on compact shapes, and the budget of a speedup."""

import math
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gating.discovery.find import Unit
from gating.errors import InputError
from gating.gates import HeadGates, create_gates
from gating.objectives import ExactBudget
from gating.pruning.latency.comparison import LatencyComparison, margin
from gating.pruning.latency.copies import PRECISION, CopyTimer
from gating.pruning.latency.settings import LatencySettings
from gating.pruning.latency.speedup import check_speedup, num_heads_for_speedup
from gating.pruning.latency.time_budget import MAX_SECONDS, TimeBudget
from gating.pruning.prune import remove_in_copy

__all__ = ["NUM_PASSES", "LatencyCosts", "budget_for_speedup", "measure_latency_costs", "time_kept"]

# Shares of heads and of neurons in the models that are timed. The fit needs the first three; others make it exact.
_SHAPES = ((0.0, 0.0), (1.0, 0.5), (0.5, 1.0), (0.5, 0.5), (0.25, 0.25), (0.0, 0.5), (0.5, 0.0))
_NUM_NEEDED = 3
# Number of forward passes with which the fit and the search for gates after it are exact.
NUM_PASSES = 100


@dataclass(frozen=True)
class LatencyCosts:
    """Shares of the dense model's latency that its gated units take, from a linear fit.

    Attributes:
        heads: Share of all gated heads.
        neurons: Share of all gated neurons.
        fixed: Share of everything else.
        fastest: Speedup of the model with one gate of each kind left.
        error: Largest relative standard error of the timings; infinite if a copy was timed too few times.
    """

    heads: float
    neurons: float
    fixed: float
    fastest: float
    error: float = math.inf

    def rates(self, gates: HeadGates) -> dict[str, float]:
        """Return the cost of one multiply-accumulate of heads and of neurons, as share of the dense latency."""
        is_neuron = torch.tensor(gates.neurons_per_gate) > 0
        macs = {"heads": gates.macs_per_gate[~is_neuron].sum(), "neurons": gates.macs_per_gate[is_neuron].sum()}
        return {unit: getattr(self, unit) / float(total) for unit, total in macs.items() if total}

    def keep_for(self, speedup: float) -> float:
        """Return the share of the cost of all gated units that remains at a speedup.

        Raises:
            InputError: The speedup cannot be reached; the message names the largest one.

        Example:
            >>> round(LatencyCosts(heads=0.3, neurons=0.5, fixed=0.2, fastest=4.8).keep_for(2.0), 3)
            0.375
        """
        if speedup > self.fastest:
            precision = "" if math.isinf(self.error) else f" (timed {margin(self.error)})"
            raise InputError(
                f"speedup={speedup} cannot be reached by removing these units: with nearly all of them gone, the model "
                f"is {self.fastest:.2f} times as fast here{precision}. Ask for less than that."
            )
        share = (1 / speedup - self.fixed) / (self.heads + self.neurons)
        return min(1.0, max(0.01, share))


def budget_for_speedup(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    speedup: float,
    units: Unit | Collection[Unit] = "heads",
    max_seconds: float = MAX_SECONDS,
    **gate_options: Any,
) -> ExactBudget:
    """Return the objective with which a model becomes about as fast as wanted, from timings on this device.

    Compact copies are timed beside the model. With gates on heads alone the budget is a number of heads; with neurons
    it is a share of the latency of all gated units. Which units the search keeps is not known yet, so the compact model
    can be some percent faster or slower: time it at the end.

    Args:
        model: The dense model, without gates; unchanged.
        batch: Keyword arguments of the model, of the size to speed up, on its device. The model is timed with fewer of
            its rows if all of them would take too long.
        speedup: Time of the dense model over that of the compact one, above 1.
        units: Units that will have gates, as in :func:`gating.inject_gates`.
        max_seconds: Seconds that all timings may take together; passes that are needed in any case can exceed it. A
            warning has the error that was reached if they were too few.
        gate_options: Its other arguments.

    Raises:
        ValueError: The speedup is not above 1, or cannot be reached; the message has the largest one. Or the model has
            gates already.
    """
    check_speedup(speedup=speedup)
    gates = create_gates(model, units=units, **gate_options)
    budget = TimeBudget(LatencySettings(max_seconds=max_seconds).max_seconds)
    batch = budget.fit(model, batch, passes=NUM_PASSES)
    with budget.stage("timing copies") as stage:
        timer = CopyTimer(model, batch, stage=stage)
        if "neurons" in gates.units:
            costs = measure_latency_costs(model, gates, timer=timer)
            objective = ExactBudget(keep=costs.keep_for(speedup), cost=costs.rates(gates))
        else:
            num_heads = num_heads_for_speedup(model, speedup=speedup, gates=gates, timer=timer)
            objective = ExactBudget(num_heads=num_heads)
    if timer.error > PRECISION:
        warnings.warn(timer.shortfall("max_seconds"), stacklevel=2)
    return objective


def measure_latency_costs(
    model: nn.Module,
    gates: HeadGates,
    *,
    timer: CopyTimer | None = None,
    measure: Callable[[Tensor], float] | None = None,
) -> LatencyCosts:
    """Fit the latency of heads and neurons to timings of compact copies of a model.

    Copies with some share of the heads and of the neurons of each block are timed against the dense model, alternately.
    The fit is linear in the two shares. Copies that it can do without are left out when the time is over.

    Args:
        model: The dense model, without gates; unchanged.
        gates: The gates that it would have.
        timer: Timer of its compact copies.
        measure: Function from a mask of kept gates to the speedup, in place of the timer.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from gating.gates import create_gates
        >>> model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=4, vocab_size=10))
        >>> gates = create_gates(model, units=["heads", "neurons"])
        >>> half = lambda kept: 1 / (0.5 + 0.5 * kept[4:].float().mean().item())  # only neurons take time
        >>> costs = measure_latency_costs(model, gates, measure=half)
        >>> round(costs.heads, 3), round(costs.neurons, 3)
        (0.0, 0.5)
    """
    has_heads, has_neurons = "heads" in gates.units, "neurons" in gates.units
    shapes = dict.fromkeys((heads if has_heads else 1.0, neurons if has_neurons else 1.0) for heads, neurons in _SHAPES)
    points = [(1.0, 1.0, 1.0)]
    fastest = 1.0
    for number, (heads, neurons) in enumerate(shape for shape in shapes if shape != (1.0, 1.0)):
        if timer is not None and timer.is_over and number >= _NUM_NEEDED:
            break
        kept = _keep_evenly(gates, heads=heads, neurons=neurons)
        if measure is not None:
            speedup = measure(kept)
        else:
            assert timer is not None
            what = f"{heads:.0%} of the heads, {neurons:.0%} of the neurons"
            # Those that are needed leave a part of the time to the others together.
            share = 1 / max(_NUM_NEEDED + 0.5 - number, 1)
            speedup = time_kept(model, gates, kept, timer, what=what, share=share).speedup
        fastest = max(fastest, speedup)
        points.append((*_shares(gates, kept), 1 / speedup))
    heads, neurons = _fit(points, has_heads=has_heads, has_neurons=has_neurons)
    error = math.inf if timer is None else timer.error
    return LatencyCosts(heads, neurons, 1 - heads - neurons, fastest, error)


def _fit(points: list[tuple[float, float, float]], *, has_heads: bool, has_neurons: bool) -> tuple[float, float]:
    """Return the shares of heads and neurons that fit relative times best, from 0 to 1 together.

    The dense model is exact: with ``h`` and ``n`` the removed shares, ``1 - time = heads * h + neurons * n``.
    """
    removed = torch.tensor([[1 - heads, 1 - neurons] for heads, neurons, _ in points], dtype=torch.float64)
    saved = torch.tensor([1 - time for *_, time in points], dtype=torch.float64)
    columns = [column for column, present in enumerate((has_heads, has_neurons)) if present]
    while columns:
        found = torch.linalg.lstsq(removed[:, columns], saved.unsqueeze(1)).solution.flatten().tolist()
        if min(found) >= 0:
            # Imprecise timings can explain more than all of the time.
            total = max(1.0, sum(found))
            shares = dict(zip(columns, (share / total for share in found), strict=True))
            return shares.get(0, 0.0), shares.get(1, 0.0)
        columns.remove(columns[found.index(min(found))])
    return 0.0, 0.0


def _keep_evenly(gates: HeadGates, *, heads: float, neurons: float) -> Tensor:
    """Return the mask of the first gates of each block, and of at least one gate of each kind."""
    kept = []
    missing = dict.fromkeys(gates.units, True)
    for size, kind in zip(gates.block_sizes, gates.block_kinds, strict=True):
        unit: Unit = "neurons" if kind == "feed_forward" else "heads"
        number = round(size * (neurons if unit == "neurons" else heads))
        if not number and missing[unit]:
            number = 1
        missing[unit] = False
        kept.append(torch.arange(size) < number)
    return torch.cat(kept)


def _shares(gates: HeadGates, kept: Tensor) -> tuple[float, float]:
    """Return the shares of the multiply-accumulates of heads and of neurons that a mask keeps; 1 if there are none."""
    is_neuron = torch.tensor(gates.neurons_per_gate) > 0
    shares = []
    for of_kind in (~is_neuron, is_neuron):
        total = gates.macs_per_gate[of_kind].sum()
        shares.append(float(gates.macs_per_gate[of_kind & kept].sum() / total) if total else 1.0)
    return shares[0], shares[1]


@torch.no_grad()
def time_kept(
    model: nn.Module, gates: HeadGates, kept: Tensor, timer: CopyTimer, *, what: str = "", share: float = 1.0
) -> LatencyComparison:
    """Time a model with some gates kept: a compact copy against it, alternately.

    Args:
        model: The dense model, without gates; unchanged.
        gates: The gates, which are not attached.
        kept: Mask of the gates to keep, ``[num_gates]``.
        timer: Timer of its compact copies.
        what: The copy in words, for the progress bar.
        share: The share of the timer's time that it may take.
    """
    return timer.time(remove_in_copy(model, gates, kept), what=what, share=share)
