"""Samplers of exactly k gates for differentiable subset pruning (Li et al. 2021, arXiv 2108.04657)."""

import torch
from torch import Tensor, nn

from gating.objectives.baselines.mask import HostCount
from gating.objectives.expected_count import solve_offset
from gating.objectives.parts import BudgetPart

__all__ = ["GumbelTopK", "StraightThroughTopK", "gumbel_noise", "soft_knapsack", "soft_top_k"]


def soft_top_k(scores: Tensor, k: int, temperature: Tensor | float) -> Tensor:
    """Return a differentiable relaxation of "the k largest" that sums to k (Xie and Ermon 2019, arXiv 1901.10517).

    The k-fold softmax: ``p_1 = softmax(r_1 / t)``, ``r_{j+1} = r_j + log(1 - p_j)``, with the result ``p_1 + ... +
    p_k``. Each step lowers the scores of entries that are already drawn. As ``t`` approaches zero, the result becomes
    the indicator of the k largest; for large ``t`` each entry is ``k / n``.

    Args:
        scores: ``r_1``, shape ``[n]``; entries of minus infinity are never drawn.
        k: Number of entries to draw.
        temperature: ``t``.

    Returns:
        Shape ``[n]``, float32.

    Example:
        >>> soft_top_k(torch.tensor([3.0, 1.0, 2.0]), 2, 0.01).round().tolist()
        [1.0, 0.0, 1.0]
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

    The fractional knapsack with an entropy: the ``p`` in [0, 1] with ``sum_i w_i p_i = budget`` that maximize
    ``sum_i w_i (r_i p_i + t H(p_i))``, with scores ``r`` per unit of weight and ``H`` the entropy of a Bernoulli
    variable. These are ``p_i = sigmoid((r_i - c) / t)`` with the multiplier ``c`` of the budget. As ``t`` approaches
    zero, the items with the largest scores get 1 until the budget is used, and one of them a fraction; for large ``t``
    all items get the same share. With equal weights, both limits are those of :func:`soft_top_k`.

    Args:
        scores: ``r``, shape ``[n]``.
        weights: ``w``, shape ``[n]``; items of weight zero are never drawn.
        budget: A scalar from zero to the sum of the weights.
        temperature: ``t``.

    Returns:
        Shape ``[n]``, float32.

    Example:
        >>> scores, weights = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([2.0, 1.0, 1.0])
        >>> soft_knapsack(scores, weights, torch.tensor(2.5), 0.01).mul(4).round().tolist()
        [4.0, 0.0, 2.0]
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


class StraightThroughTopK(nn.Module):
    """A sampler that opens the gates with the largest ``log_alpha``, with the gradient of ``log_alpha`` itself.

    Closed gates get a gradient, too, and may open again (straight-through estimator, Bengio et al. 2013, arXiv
    1308.3432).

    Attributes:
        num_open: Number of open heads or neurons, or the share of cost that may be open.
    """

    def __init__(self, part: BudgetPart, *, number: float) -> None:
        """Set the number of open heads or neurons, which the gates can keep, or the share of cost."""
        super().__init__()
        self.num_open = HostCount(number)
        self._part = part

    def sample(self, log_alpha: Tensor) -> Tensor:
        """Return the mask, with the gradient of ``log_alpha``."""
        return self.values(log_alpha) + (log_alpha - log_alpha.detach())

    def values(self, log_alpha: Tensor) -> Tensor:
        """Return the mask: ones and zeros."""
        chosen = self._part.choose_own(log_alpha.detach(), self.num_open.value)
        return torch.zeros_like(log_alpha, requires_grad=False).index_fill(0, chosen, 1.0)

    def prob_open(self, log_alpha: Tensor) -> Tensor:
        """Return the mask, as no gate is random."""
        return self.values(log_alpha)


class GumbelTopK(StraightThroughTopK):
    """A sampler that draws a relaxed subset of exactly k heads in training and uses the k largest in evaluation.

    A draw is ``soft_top_k(w + gumbel noise, k, temperature)`` with the importance variables ``w = scale * log_alpha``.
    For neurons and for a share of cost, it is :func:`soft_knapsack` of the same.

    With many draws and a low temperature the gradient of the iterated softmax explodes (to 1e15 for 70 of 72 heads at
    0.01). Clipping the gradients of a whole model together would then shrink all others to nothing, so the norm of this
    gradient is bounded by 1.

    Attributes:
        temperature: Temperature of the relaxation, a scalar buffer.
    """

    temperature: Tensor
    _is_padding: Tensor
    _weights: Tensor

    def __init__(self, part: BudgetPart, *, number: float, scale: float, temperature: float) -> None:
        """Set the number or share as for the k largest, and the ratio ``scale`` of ``w`` to ``log_alpha``."""
        super().__init__(part, number=number)
        self.register_buffer("temperature", torch.tensor(float(temperature)))
        self.register_buffer("_is_padding", torch.tensor(part.weights) == 0, persistent=False)
        self._scale = scale
        self._is_weighed = part.is_weighed
        mean = part.total / (len(part.weights) - part.weights.count(0))
        # The weights of a draw are 1 in the mean.
        self._per_draw = mean
        weights = torch.tensor([weight / mean for weight in part.weights], dtype=torch.float32)
        self.register_buffer("_weights", weights, persistent=False)

    def sample(self, log_alpha: Tensor) -> Tensor:
        """Return a relaxed draw."""
        locations = log_alpha.clone()
        if locations.requires_grad:
            locations.register_hook(_bounded)
        return self._relax(self._scale * locations + gumbel_noise(locations), self.temperature)

    def prob_open(self, log_alpha: Tensor) -> Tensor:
        """Return the relaxation without noise at temperature 1: about the probability that each gate is drawn."""
        return self._relax(self._scale * log_alpha, 1.0)

    def _relax(self, scores: Tensor, temperature: Tensor | float) -> Tensor:
        # k heads are k / heads_per_draw gates if gates stand for several heads.
        num_draws = self.num_open.value / self._per_draw
        if self._is_weighed:
            return soft_knapsack(scores, self._weights, torch.full_like(self.temperature, num_draws), temperature)
        num_draws = max(1, round(num_draws))
        return soft_top_k(scores.masked_fill(self._is_padding, -torch.inf), num_draws, temperature)


def _bounded(gradient: Tensor) -> Tensor:
    # Entries that have overflowed contain no direction.
    finite = gradient.nan_to_num(0.0, 0.0, 0.0)
    bounded: Tensor = finite / finite.norm().clamp_min(1.0)
    return bounded
