"""Heads by how much the loss depends on them (Michel et al. 2019, arXiv 1905.10650)."""

from functools import partial

import torch
from torch import Tensor, nn

from gating.gates import HeadGates

__all__ = ["Importance", "sensitivity"]


class Importance(nn.Module):
    """Rank heads by the expected sensitivity of the loss to them, normalised in each layer (section 4.1 there).

    The paper ranks the heads of a trained model, over the training data, and anew for each round. Here weights are
    trained on between rounds, as in every run, so the importance is collected from the batches that are trained on
    since the last round, dropout included. A module that serves as several layers counts each use.
    """

    importance: Tensor

    def attach(self, gates: HeadGates) -> None:
        """Watch what the heads put out, until the gates are removed."""
        self.register_buffer("importance", torch.zeros_like(gates.log_alpha, requires_grad=False))
        first = 0
        for block, size in zip(gates.attention_blocks(), gates.block_sizes, strict=True):
            watch = _Watch(self, first, size)
            gates.remove_with_gates(block.output_projection.register_forward_pre_hook(watch))
            first += size

    def scores(self, gates: HeadGates) -> Tensor:
        """Return the importance of a head of each gate, ``[num_gates]``, with an L2 norm of one in each layer."""
        heads = torch.tensor(gates.heads_per_gate, device=self.importance.device).clamp_min(1)
        layers = (self.importance / heads).split(gates.block_sizes)
        # As the authors' program does; a layer without an open head stays zero.
        return torch.cat([layer / (layer.norm() + 1e-20) for layer in layers]).to(gates.log_alpha.device)

    def start_over(self, gates: HeadGates) -> None:
        """Forget the batches so far."""
        self.importance.zero_()


def sensitivity(heads: Tensor, gradient: Tensor, num_gates: int) -> Tensor:
    """Return how much the loss of each example changes with each gate, in sum over the examples.

    With ``xi_h`` the mask variable that multiplies the output ``Att_h(x)`` of a head, the importance is
    ``I_h = E_x |dL(x) / d xi_h| = E_x |Att_h(x)^T dL(x) / d Att_h(x)|`` (paper, equation 2 and the one below it), so
    the absolute value is that of an example. The authors' program takes it of every token, and the one in transformers'
    examples of every batch. The mean differs from the sum by a factor that the normalisation cancels.

    Args:
        heads: What an output projection gets, ``[examples, ..., slots * head_dim]``.
        gradient: The gradient of the loss with respect to it.
        num_gates: How many gates the block has; each multiplies an equal part of the last dimension.

    Returns:
        Shape ``[num_gates]``, float32.
    """
    products = (heads.float() * gradient.float()).unflatten(-1, (num_gates, -1)).sum(dim=-1)
    per_example: Tensor = products.reshape(len(products), -1, num_gates).sum(dim=1)
    # A step that a gradient scaler is about to skip has infinite gradients.
    return per_example.abs().nan_to_num(0.0, 0.0, 0.0).sum(dim=0)


class _Watch(nn.Module):
    """A pre-hook of an output projection that has the gradient of its input looked at.

    A module, not a closure, as the gates are: copying the model copies it.
    """

    ranking: Importance

    def __init__(self, ranking: Importance, first: int, num_gates: int) -> None:
        super().__init__()
        object.__setattr__(self, "ranking", ranking)
        self._first = first
        self._num_gates = num_gates

    def forward(self, projection: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        heads = inputs[0]
        # Inside of a checkpoint the first pass has no gradient, and the one that counts comes backwards.
        if torch.is_grad_enabled() and heads.requires_grad:
            heads.register_hook(partial(self._observe, heads.detach()))

    @torch.no_grad()
    def _observe(self, heads: Tensor, gradient: Tensor) -> None:
        importance = self.ranking.importance
        found = sensitivity(heads, gradient, self._num_gates)
        importance[self._first : self._first + self._num_gates] += found.to(importance.device)
