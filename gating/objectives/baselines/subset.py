"""Samplers of exactly k gates for differentiable subset pruning (Li et al. 2021, arXiv 2108.04657)."""

import torch
from torch import Tensor, nn

from gating.objectives.budget import BudgetPart
from gating.objectives.mask import HostCount
from gating.objectives.selection import select_gates

__all__ = ["GumbelTopK", "StraightThroughTopK", "gumbel_noise", "soft_top_k"]


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


def gumbel_noise(like: Tensor) -> Tensor:
    """Draw standard Gumbel noise; the k largest scores with this noise are k draws without replacement.

    Args:
        like: Tensor with the shape and device of the noise.

    Returns:
        ``-log(-log(u))`` for uniform ``u``, float32.
    """
    uniform = torch.rand(like.shape, device=like.device, dtype=torch.float32)
    return -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))


class StraightThroughTopK(nn.Module):
    """A sampler that opens the heads with the largest ``log_alpha``, with the gradient of ``log_alpha`` itself.

    Closed heads get a gradient, too, and may open again (straight-through estimator, Bengio et al. 2013, arXiv
    1308.3432).

    Attributes:
        num_open: Number of open heads.
    """

    def __init__(self, part: BudgetPart, *, num_heads: int, min_per_layer: int) -> None:
        """Set the number of open heads.

        Args:
            part: The gates.
            num_heads: Number of open heads, which the gates can keep.
            min_per_layer: Least number of heads that every layer keeps.
        """
        super().__init__()
        self.num_open = HostCount(num_heads)
        self._heads_per_gate = part.heads_per_gate
        self._block_sizes = part.block_sizes
        self._min_per_layer = min_per_layer

    def sample(self, log_alpha: Tensor) -> Tensor:
        """Return the mask, with the gradient of ``log_alpha``."""
        return self.values(log_alpha) + (log_alpha - log_alpha.detach())

    def values(self, log_alpha: Tensor) -> Tensor:
        """Return the mask: ones and zeros."""
        chosen = select_gates(
            log_alpha.detach(),
            self._heads_per_gate,
            self.num_open.value,
            block_sizes=self._block_sizes,
            min_per_layer=self._min_per_layer,
        )
        return torch.zeros_like(log_alpha, requires_grad=False).index_fill(0, chosen, 1.0)

    def prob_open(self, log_alpha: Tensor) -> Tensor:
        """Return the mask, as no gate is random."""
        return self.values(log_alpha)


class GumbelTopK(nn.Module):
    """A sampler that draws a relaxed subset of exactly k heads in training and uses the k largest in evaluation.

    A draw is ``soft_top_k(w + gumbel noise, k, temperature)`` with the importance variables ``w = scale * log_alpha``.

    With many draws and a low temperature the gradient of the iterated softmax explodes (to 1e15 for 70 of 72 heads at
    0.01). Clipping the gradients of a whole model together would then shrink all others to nothing, so the norm of this
    gradient is bounded by 1.

    Attributes:
        hard: Sampler of the k largest.
        temperature: Temperature of the relaxation, a scalar buffer.
    """

    temperature: Tensor
    _is_padding: Tensor

    def __init__(self, part: BudgetPart, *, hard: StraightThroughTopK, scale: float, temperature: float) -> None:
        """Set up the sampler.

        Args:
            part: The gates.
            hard: Sampler of the k largest.
            scale: ``w`` over ``log_alpha``.
            temperature: Temperature of the relaxation at the start.
        """
        super().__init__()
        self.hard = hard
        self.register_buffer("temperature", torch.tensor(float(temperature)))
        self.register_buffer("_is_padding", torch.tensor(part.heads_per_gate) == 0, persistent=False)
        self._scale = scale
        self._heads_per_draw = part.num_heads / (len(part.heads_per_gate) - part.heads_per_gate.count(0))

    def sample(self, log_alpha: Tensor) -> Tensor:
        """Return a relaxed draw."""
        locations = log_alpha.clone()
        if locations.requires_grad:
            locations.register_hook(_bounded)
        return self._relax(self._scale * locations + gumbel_noise(locations), self.temperature)

    def values(self, log_alpha: Tensor) -> Tensor:
        """Return the mask of the largest: ones and zeros."""
        return self.hard.values(log_alpha)

    def prob_open(self, log_alpha: Tensor) -> Tensor:
        """Return the relaxation without noise at temperature 1: about the probability that each gate is drawn."""
        return self._relax(self._scale * log_alpha, 1.0)

    def _relax(self, scores: Tensor, temperature: Tensor | float) -> Tensor:
        # k heads are k / heads_per_draw gates if gates stand for several heads.
        num_draws = max(1, round(self.hard.num_open.value / self._heads_per_draw))
        return soft_top_k(scores.masked_fill(self._is_padding, -torch.inf), num_draws, temperature)


def _bounded(gradient: Tensor) -> Tensor:
    # Entries that have overflowed contain no direction.
    finite = gradient.nan_to_num(0.0, 0.0, 0.0)
    bounded: Tensor = finite / finite.norm().clamp_min(1.0)
    return bounded
