"""Latency of heads and neurons, measured on compact shapes, and gates that reach a speedup."""

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
from gating.pruning.measure import compare_latency
from gating.pruning.prune import remove_in_copy
from gating.pruning.speedup import check_speedup, num_heads_for_speedup

__all__ = ["LatencyCosts", "budget_for_speedup", "kept_for_speedup", "measure_latency_costs", "time_kept"]

# Shares of heads and of neurons in the models that are timed.
_SHAPES = ((1.0, 0.5), (0.5, 1.0), (0.5, 0.5), (0.25, 0.25), (0.0, 0.5), (0.5, 0.0), (0.0, 0.0))
_MAX_ATTEMPTS = 8
# Distance from the wanted speedup at which the search for gates ends, and at which it warns.
_CLOSE, _FAR = 0.02, 0.05
# Relative standard error of timings.
_PRECISION = 0.007


@dataclass(frozen=True)
class LatencyCosts:
    """Shares of the dense model's latency that its gated units take, from a linear fit.

    Attributes:
        heads: Share of all gated heads.
        neurons: Share of all gated neurons.
        fixed: Share of everything else.
        fastest: Speedup of the model with one gate of each kind left.
    """

    heads: float
    neurons: float
    fixed: float
    fastest: float

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
            raise InputError(
                f"speedup={speedup} cannot be reached by removing these units: with nearly all of them gone, the model "
                f"is {self.fastest:.2f} times as fast here. Ask for less than that."
            )
        share = (1 / speedup - self.fixed) / (self.heads + self.neurons)
        return min(1.0, max(0.01, share))


def budget_for_speedup(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    speedup: float,
    units: Unit | Collection[Unit] = "heads",
    **gate_options: Any,
) -> ExactBudget:
    """Return the objective with which a model becomes about as fast as wanted, from timings on this device.

    Compact copies are timed beside the model. With gates on heads alone the budget is a number of heads; with neurons
    it is a share of the latency of all gated units. Which units the search keeps is not known yet, so the compact model
    can be some percent faster or slower: time it at the end.

    Args:
        model: The dense model, without gates; unchanged.
        batch: Keyword arguments of the model, of the size to speed up, on its device.
        speedup: Time of the dense model over that of the compact one, above 1.
        units: Units that will have gates, as in :func:`gating.inject_gates`.
        gate_options: Its other arguments.

    Raises:
        ValueError: The speedup is not above 1, or cannot be reached; the message has the largest one. Or the model has
            gates already.
    """
    check_speedup(speedup=speedup)
    gates = create_gates(model, units=units, **gate_options)
    if "neurons" not in gates.units:
        return ExactBudget(num_heads=num_heads_for_speedup(model, batch, speedup=speedup, gates=gates))
    costs = measure_latency_costs(model, gates, batch)
    return ExactBudget(keep=costs.keep_for(speedup), cost=costs.rates(gates))


def measure_latency_costs(
    model: nn.Module,
    gates: HeadGates,
    batch: Mapping[str, Tensor],
    *,
    repeats: int = 15,
    measure: Callable[[Tensor], float] | None = None,
) -> LatencyCosts:
    """Fit the latency of heads and neurons to timings of compact copies of a model.

    Copies with some share of the heads and of the neurons of each block are timed against the dense model, alternately.
    The fit is linear in the two shares.

    Args:
        model: The dense model, without gates; unchanged.
        gates: The gates that it would have.
        batch: Keyword arguments of the model, on its device.
        repeats: Least number of timings of each pair of models.
        measure: Function from a mask of kept gates to the speedup, in place of timings.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from gating.gates import create_gates
        >>> model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=4, vocab_size=10))
        >>> gates = create_gates(model, units=["heads", "neurons"])
        >>> half = lambda kept: 1 / (0.5 + 0.5 * kept[4:].float().mean().item())  # only neurons take time
        >>> costs = measure_latency_costs(model, gates, {}, measure=half)
        >>> round(costs.heads, 3), round(costs.neurons, 3)
        (0.0, 0.5)
    """
    measure = measure or (lambda kept: time_kept(model, gates, kept, batch, repeats=repeats))
    has_heads, has_neurons = "heads" in gates.units, "neurons" in gates.units
    shapes = dict.fromkeys((heads if has_heads else 1.0, neurons if has_neurons else 1.0) for heads, neurons in _SHAPES)
    points = [(1.0, 1.0, 1.0)]
    fastest = 1.0
    for heads, neurons in shapes:
        if (heads, neurons) == (1.0, 1.0):
            continue
        kept = _keep_evenly(gates, heads=heads, neurons=neurons)
        speedup = measure(kept)
        fastest = max(fastest, speedup)
        points.append((*_shares(gates, kept), 1 / speedup))
    heads, neurons = _fit(points, has_heads=has_heads, has_neurons=has_neurons)
    return LatencyCosts(heads, neurons, 1 - heads - neurons, fastest)


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
    model: nn.Module, gates: HeadGates, kept: Tensor, batch: Mapping[str, Tensor], *, repeats: int = 15
) -> float:
    """Return the speedup of a model with some gates kept: a compact copy is timed against it, alternately.

    Args:
        model: The dense model, without gates; unchanged.
        gates: The gates, which are not attached.
        kept: Mask of the gates to keep, ``[num_gates]``.
        batch: Keyword arguments of the model, on its device.
        repeats: Least number of timings of each of the two models.
    """
    compact = remove_in_copy(model, gates, kept)
    return compare_latency(model, compact, batch, repeats=repeats, precision=_PRECISION).speedup


def kept_for_speedup(
    choose: Callable[[float], Tensor], measure: Callable[[Tensor], float], *, speedup: float, keep: float
) -> Tensor:
    """Return the choice of gates with which the compact model is measured to have a speedup.

    Latency is linear in the kept units only roughly: layers that lose all heads also lose their softmax. So copies with
    the chosen gates are timed, and the budget is moved until the speedup is right; a warning names the one that was
    reached if it is further away than 5 percent.

    Args:
        choose: Function from a share of the cost to the mask of the gates to keep, ``[num_gates]``.
        measure: Function from a mask to the speedup, such as :func:`time_kept`.
        speedup: Time of the dense model over that of the compact one.
        keep: The share to begin with.

    Example:
        >>> choose = lambda share: torch.arange(48) < share * 48
        >>> speedup_of = lambda kept: 1 / (0.2 + 0.8 * kept.float().mean().item())
        >>> kept_for_speedup(choose, speedup_of, speedup=2.0, keep=0.6).sum().item()
        18
    """
    # Relative times of the nearest shares that are too fast and too slow.
    fast, slow = (0.0, 0.0), (1.0, 1.0)
    tried: list[tuple[float, float, Tensor]] = []
    share = keep
    for _ in range(_MAX_ATTEMPTS):
        kept = choose(share)
        reached = measure(kept)
        tried.append((abs(reached / speedup - 1), reached, kept))
        if tried[-1][0] <= _CLOSE:
            break
        if reached > speedup:
            fast = (share, 1 / reached)
        else:
            slow = (share, 1 / reached)
        share = _between(fast, slow, 1 / speedup)
        if slow[0] - fast[0] < 1e-3:
            break
    distance, reached, kept = min(tried, key=lambda attempt: attempt[0])
    if distance > _FAR:
        warnings.warn(
            f"The compact model is {reached:.2f} times as fast as the dense one here, not {speedup}: no choice of "
            "these gates was closer.",
            stacklevel=2,
        )
    return kept


def _between(fast: tuple[float, float], slow: tuple[float, float], time: float) -> float:
    """Return the share at which a line through two points has the wanted time, away from both ends."""
    (low, fast_time), (high, slow_time) = fast, slow
    position = (time - fast_time) / (slow_time - fast_time) if slow_time > fast_time else 0.5
    return low + min(0.9, max(0.1, position)) * (high - low)
