"""Differentiable subset pruning (Li, Cotterell and Sachan 2021, arXiv 2108.04657): exactly k gates are drawn."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gating.errors import InputError
from gating.gates import HeadGates
from gating.gates.hard_concrete import GateSampler, are_numbers
from gating.objectives.base import KeepsBudget
from gating.objectives.expected_count import EqualLayers, solve_offset
from gating.objectives.parts import Part, chosen


class TopK(KeepsBudget):
    """Differentiable subset pruning: an objective with importance variables of the heads, exactly k of them open.

    The joint variant of the paper, in which weights and importance variables ``w`` are trained together. ``gumbel``
    draws a relaxed subset with Gumbel noise at each step, while the temperature falls geometrically: from values of
    ``k / n`` to ones and zeros. ``straight_through`` opens the k heads with the largest ``w`` and passes the gradient
    to all heads. As in the paper, ``w`` starts from a Xavier uniform distribution over layers times heads and has the
    learning rate 0.5: steps of Adam do not depend on the scale of gradients, so that a ``scale`` of 5 makes 0.5 of the
    gates' rate 0.1.

    The differences are for runs of a thousand steps; the paper's have 36800 (BERT on MNLI). In the paper, k is the
    budget from the first step (``BudgetSchedule(start=0, end=0)``) and the temperature falls from 1000 to 1e-8 in 0.68
    of the steps, so that most heads of a pre-trained model are off while it learns the task. In short runs, the last
    layer won all k places in this way, since the softmax compares the gradient of each head with the mean of all. Here
    k follows the same schedule as in other objectives, and the temperature falls from 10 to 0.1, where gradients of
    heads still differ. After the search, the k heads are trained without noise, where the paper evaluates immediately;
    and ``w`` has a constant learning rate, where the paper's falls linearly to zero.

    The paper draws heads. For neurons and for a share of cost, the draw is that of
    :func:`soft_knapsack`, since items of different costs cannot be counted.
    """

    def __init__(  # noqa: D417 - the others are those of ExactBudget
        self,
        *,
        variant: Literal["gumbel", "straight_through"] = "gumbel",
        initial_temperature: float = 10.0,
        final_temperature: float = 0.1,
        cooldown: float = 0.68,
        scale: float = 5.0,
        **budget: Any,
    ) -> None:
        """Set the budget; the other arguments are those of :class:`~gating.objectives.ExactBudget`.

        The schedule is the descent of k. Draws of ``gumbel`` ignore ``min_per_layer`` and ``uniform``.

        Args:
            variant: ``gumbel`` or ``straight_through``.
            initial_temperature: Temperature of ``gumbel`` at the start.
            final_temperature: Temperature of ``gumbel`` after ``cooldown``.
            cooldown: Share of the search in which the temperature falls.
            scale: ``w`` over ``log_alpha``, and so the learning rate of ``w`` over that of the gates.

        Raises:
            InputError: A number is out of range, or the variant is unknown.
        """
        super().__init__(**budget)
        if variant not in ("gumbel", "straight_through"):
            raise InputError(f"The variant of top-k is gumbel or straight_through, got {variant!r}.")
        are_fit = are_numbers(initial_temperature, final_temperature)
        if not (are_fit and math.inf > initial_temperature >= final_temperature > 0):
            raise InputError(
                "The temperature must fall and stay above 0, got "
                f"initial_temperature={initial_temperature!r} and final_temperature={final_temperature!r}."
            )
        if not (are_numbers(cooldown, scale) and 0 <= cooldown <= 1 and 0 < scale < math.inf):
            raise InputError(f"Give cooldown from 0 to 1, got {cooldown!r}, and a positive scale, got {scale!r}.")
        self._variant = variant
        self._temperatures = (initial_temperature, final_temperature)
        self._cooldown = cooldown
        self._scale = scale

    def attach(self, gates: HeadGates) -> None:
        """Initialize ``log_alpha`` at random and set the sampler of the gates."""
        super().attach(gates)
        bound = math.sqrt(6 / (len(gates.block_sizes) + max(gates.block_sizes)))
        nn.init.uniform_(gates.log_alpha, -bound / self._scale, bound / self._scale)
        sampler = StraightThroughTopK(self._parts)
        if self._variant == "gumbel":
            sampler = GumbelTopK(self._parts, scale=self._scale, temperature=self._temperature(0.0))
        sampler.numbers = self._numbers(0.0)
        gates.sampler = sampler.to(gates.log_alpha.device)
        if self._budget.uniform:
            gates.constraint = EqualLayers(self._parts).to(gates.log_alpha.device)

    def update(self, gates: HeadGates, progress: float) -> None:
        """Set the temperature and k for this share of the search."""
        super().update(gates, progress)
        gates.renew_values()
        sampler = self._sampler_of(gates)
        if isinstance(sampler, GumbelTopK):
            sampler.temperature.fill_(self._temperature(progress))
        sampler.numbers = self._numbers(progress)

    def target(self, gates: HeadGates) -> float:
        """Return the number of open heads or neurons; with gates on both, the share of cost that may be open."""
        return self._amount(self._sampler_of(gates).numbers)

    def _numbers(self, progress: float) -> list[float]:
        limits = zip(self._parts, self._limits(progress), strict=True)
        return [float(part.nearest(limit)) for part, limit in limits]

    def _temperature(self, progress: float) -> float:
        initial, final = map(math.log, self._temperatures)
        done = min(1.0, progress / self._cooldown) if self._cooldown else 1.0
        return math.exp(initial + done * (final - initial))

    def _sampler_of(self, gates: HeadGates) -> "StraightThroughTopK":
        self.check_search(gates)
        assert isinstance(gates.sampler, StraightThroughTopK)
        return gates.sampler


class StraightThroughTopK(GateSampler):
    """A sampler that opens the gates with the largest ``log_alpha``, with the gradient of ``log_alpha`` itself.

    Closed gates get a gradient, too, and may open again (straight-through estimator, Bengio et al. 2013, arXiv
    1308.3432). The ``numbers`` are those of open units, or shares of cost, of each part.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        """Set the parts, whose limits are the first numbers."""
        super().__init__([part.limit for part in parts])
        self._parts = parts

    def sample(self, log_alpha: Tensor) -> Tensor:
        """Return the mask, with the gradient of ``log_alpha``."""
        return self.values(log_alpha) + (log_alpha - log_alpha.detach())

    def values(self, log_alpha: Tensor) -> Tensor:
        """Return the mask: ones and zeros."""
        return chosen(self._parts, log_alpha, self.numbers).float()


class GumbelTopK(StraightThroughTopK):
    """A sampler that draws a relaxed subset of exactly k heads in training and uses the k largest in evaluation.

    A draw is ``soft_top_k(w + gumbel noise, k, temperature)`` with the importance variables ``w = scale * log_alpha``;
    for neurons and for a share of cost, it is :func:`soft_knapsack` of the same. With many draws and a low temperature
    the gradient of the iterated softmax explodes (to 1e15 for 70 of 72 heads at 0.01). Clipping all gradients together
    would then shrink the others to nothing, so the norm of this gradient is bounded by 1.
    """

    temperature: Tensor

    def __init__(self, parts: Sequence[Part], *, scale: float, temperature: float) -> None:
        """Set the parts, and the ratio ``scale`` of ``w`` to ``log_alpha``."""
        super().__init__(parts)
        self.register_buffer("temperature", torch.tensor(float(temperature)))
        self._scale = scale

    def sample(self, log_alpha: Tensor) -> Tensor:
        """Return a relaxed draw."""
        return self._relax(log_alpha, self.temperature, has_noise=True)

    def prob_open(self, log_alpha: Tensor) -> Tensor:
        """Return the relaxation without noise at temperature 1: about the probability that each gate is drawn."""
        return self._relax(log_alpha, torch.ones_like(self.temperature), has_noise=False)

    def _relax(self, log_alpha: Tensor, temperature: Tensor, *, has_noise: bool) -> Tensor:
        drawn = torch.zeros_like(log_alpha, requires_grad=False)
        for part, limit in zip(self._parts, self.numbers, strict=True):
            own = torch.tensor(part.gates, device=log_alpha.device)
            locations = log_alpha[own]
            if has_noise and locations.requires_grad:
                locations.register_hook(_bounded)
            scores = self._scale * locations + (gumbel_noise(locations) if has_noise else 0.0)
            drawn = drawn.index_put((own,), _relaxed(part, scores, limit, temperature))
        return drawn


def _relaxed(part: Part, scores: Tensor, limit: float, temperature: Tensor) -> Tensor:
    """Return a relaxed subset of the gates of a part, ``[num_gates_of_part]``."""
    # The weights of a draw are 1 in the mean: k heads are k / mean draws if gates stand for several heads.
    mean = part.total / (len(part.sizes) - part.sizes.count(0))
    num_draws = limit / mean
    if part.is_weighed:
        weights = torch.tensor([size / mean for size in part.sizes], dtype=torch.float32, device=scores.device)
        return soft_knapsack(scores, weights, torch.full_like(temperature, num_draws), temperature)
    is_padding = torch.tensor(part.sizes, device=scores.device) == 0
    return soft_top_k(scores.masked_fill(is_padding, -torch.inf), max(1, round(num_draws)), temperature)


def soft_top_k(scores: Tensor, k: int, temperature: Tensor | float) -> Tensor:
    """Return a differentiable relaxation of "the k largest" that sums to k (Xie and Ermon 2019, arXiv 1901.10517).

    The k-fold softmax of scores ``r_1`` ``[n]`` with temperature ``t``: ``p_1 = softmax(r_1 / t)``, ``r_{j+1} = r_j +
    log(1 - p_j)``, with the result ``p_1 + ... + p_k``, float32. Each step lowers the scores of entries that are
    already drawn; those of minus infinity are never drawn. As ``t`` approaches zero, the result becomes the indicator
    of the k largest; for large ``t`` each entry is ``k / n``.
    """
    with torch.autocast(device_type=scores.device.type, enabled=False):
        # In double precision, as in the authors' program: drawn entries must fall below all others.
        left = scores.to(torch.float32 if scores.device.type == "mps" else torch.float64)
        tiny = torch.finfo(left.dtype).tiny
        total = torch.zeros_like(left)
        for _ in range(k):
            taken = (left / temperature).softmax(dim=0)
            total = total + taken
            left = left + (1 - taken).clamp_min(tiny).log()
        return total.float()


def soft_knapsack(scores: Tensor, weights: Tensor, budget: Tensor, temperature: Tensor | float) -> Tensor:
    """Return a differentiable relaxation of "the best items within a budget", whose weights sum to the budget.

    The fractional knapsack with an entropy: the ``p`` in [0, 1] with ``sum_i w_i p_i = budget`` that maximize ``sum_i
    w_i (r_i p_i + t H(p_i))``, with scores ``r`` per unit of weight, ``[n]``, and ``H`` the entropy of a Bernoulli
    variable. These are ``p_i = sigmoid((r_i - c) / t)`` with the multiplier ``c`` of the budget, float32. As ``t``
    approaches zero, the items with the largest scores get 1 until the budget is used, and one of them a fraction; for
    large ``t`` all items get the same share. With equal weights, both limits are those of :func:`soft_top_k`.
    """
    with torch.autocast(device_type=scores.device.type, enabled=False):
        precise = scores.to(torch.float32 if scores.device.type == "mps" else torch.float64)
        has_weight = weights > 0
        logits = precise / temperature
        # All items are drawn if the budget is their sum, for which no offset exists.
        whole = weights.sum().to(logits.dtype)
        offset = solve_offset(logits[has_weight], weights[has_weight], torch.minimum(budget, 0.9999 * whole))
        return (torch.sigmoid(logits - offset) * has_weight).float()


def gumbel_noise(like: Tensor) -> Tensor:
    """Draw standard Gumbel noise of the shape of a tensor: ``-log(-log(u))`` for uniform ``u``, float32.

    The k largest scores with this noise are k draws without replacement.
    """
    uniform = torch.rand(like.shape, device=like.device, dtype=torch.float32)
    return -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))


def _bounded(gradient: Tensor) -> Tensor:
    # Entries that have overflowed contain no direction.
    finite = gradient.nan_to_num(0.0, 0.0, 0.0)
    bounded: Tensor = finite / finite.norm().clamp_min(1.0)
    return bounded
