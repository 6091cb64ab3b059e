"""Ranking of heads by the sensitivity of the loss (Michel et al. 2019, arXiv 1905.10650)."""

from functools import partial

import torch
from torch import Tensor, nn

from gating.gates import HeadGates

__all__ = ["Importance", "sensitivity"]


class Importance(nn.Module):
    """A ranking by the expected sensitivity of the loss to each head, normalized in each layer (paper, section 4.1).

    The paper ranks the heads of a trained model before each round, over the training data. Here weights are trained
    between rounds, so the importance is the sum over the training batches since the last round, with dropout. A module
    that serves several layers counts each use.

    Attributes:
        importance: Sensitivity so far, ``[num_gates]``, float32.

    Example:
        >>> from gating import inject_gates
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> gates, ranking = inject_gates(model), Importance()
        >>> ranking.attach(gates)
        >>> model(torch.tensor([[1, 2, 3]])).last_hidden_state.square().sum().backward()
        >>> ranking.scores(gates).shape
        torch.Size([8])
    """

    importance: Tensor

    def attach(self, gates: HeadGates) -> None:
        """Register hooks on the inputs of the output projections, until the gates are removed."""
        self.register_buffer("importance", torch.zeros_like(gates.log_alpha, requires_grad=False))
        first = 0
        for block, size in zip(gates.attention_blocks(), gates.block_sizes, strict=True):
            hook = _SensitivityHook(self, first, size)
            gates.remove_with_gates(block.output_projection.register_forward_pre_hook(hook))
            first += size

    def scores(self, gates: HeadGates) -> Tensor:
        """Return the importance of one head of each gate, ``[num_gates]``, with an L2 norm of one in each layer."""
        heads = torch.tensor(gates.heads_per_gate, device=self.importance.device).clamp_min(1)
        layers = (self.importance / heads).split(gates.block_sizes)
        # The constant is that of the authors' program; a layer without an open head stays zero.
        return torch.cat([layer / (layer.norm() + 1e-20) for layer in layers]).to(gates.log_alpha.device)

    def start_over(self, gates: HeadGates) -> None:
        """Discard the importance so far."""
        self.importance.zero_()


def sensitivity(head_outputs: Tensor, gradient: Tensor, num_gates: int) -> Tensor:
    """Return the absolute derivative of each example's loss with respect to each gate, summed over the examples.

    With ``xi_h`` the mask variable that multiplies the output ``Att_h(x)`` of a head, the importance is
    ``I_h = E_x |dL(x) / d xi_h| = E_x |Att_h(x)^T dL(x) / d Att_h(x)|`` (paper, equation 2 and the one below it), so
    the absolute value is taken for each example. The authors' program takes it for each token, and the one in
    transformers' examples for each batch. The mean differs from the sum by a factor that the normalization cancels.

    Args:
        head_outputs: Input of an output projection, ``[batch, ..., num_slots * head_dim]``.
        gradient: Gradient of the loss with respect to this input, of the same shape.
        num_gates: Number of gates of the block; each multiplies an equal part of the last dimension.

    Returns:
        Shape ``[num_gates]``, float32.

    Example:
        >>> head_outputs, gradient = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), torch.tensor([[[1.0, 0.0, -1.0, 0.0]]])
        >>> sensitivity(head_outputs, gradient, 2)
        tensor([1., 3.])
    """
    products = (head_outputs.float() * gradient.float()).unflatten(-1, (num_gates, -1)).sum(dim=-1)
    per_example: Tensor = products.reshape(len(products), -1, num_gates).sum(dim=1)
    # Gradients are infinite at steps that a gradient scaler skips.
    return per_example.abs().nan_to_num(0.0, 0.0, 0.0).sum(dim=0)


class _SensitivityHook(nn.Module):
    """A pre-hook of an output projection that adds the sensitivity of its block to the ranking in the backward pass.

    A module, not a closure: a copy of the model has its own.
    """

    ranking: Importance

    def __init__(self, ranking: Importance, first: int, num_gates: int) -> None:
        super().__init__()
        # Not a submodule: the ranking belongs to the objective.
        object.__setattr__(self, "ranking", ranking)
        self._first = first
        self._num_gates = num_gates

    def forward(self, projection: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        head_outputs = inputs[0]
        # Inside of a checkpoint, the first run of this hook has no gradient; the run in the backward pass has.
        if torch.is_grad_enabled() and head_outputs.requires_grad:
            head_outputs.register_hook(partial(self._add, head_outputs.detach()))

    @torch.no_grad()
    def _add(self, head_outputs: Tensor, gradient: Tensor) -> None:
        importance = self.ranking.importance
        found = sensitivity(head_outputs, gradient, self._num_gates)
        importance[self._first : self._first + self._num_gates] += found.to(importance.device)
