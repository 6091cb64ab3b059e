"""Rankings by the sensitivity of the loss to each gate: Michel et al. 2019, and the Fisher information."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, distributed, nn

from gating.errors import InputError
from gating.gates import HeadGates
from gating.objectives.rankings.ranking import Ranking, per_size

__all__ = ["Fisher", "Importance", "derivatives"]


class Importance(Ranking):
    """A ranking by the expected sensitivity of the loss to each head, normalized in each layer.

    Michel et al. 2019, arXiv 1905.10650, section 4.1. A group of neurons is ranked as a head is; neurons of experts,
    which see tokens and not examples, by the derivative of each token. The norm in a layer is L2 for heads, as in the
    paper. Where heads and neurons are ranked together, it is the root mean square, which does not favor layers with few
    gates. Normalized is the sensitivity per size: gates of unequal cost in one layer differ by it, and layers are alike
    however their units are grouped.

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
        """Register hooks on the outputs of heads and neurons, until the gates are removed."""
        super().attach(gates)
        self.register_buffer("importance", torch.zeros_like(gates.log_alpha, requires_grad=False))
        first = 0
        for block, size in zip(gates.blocks(), gates.block_sizes, strict=True):
            widths = [gate.num_features for gate in gates.gate_sizes[first : first + size]]
            hook = _SensitivityHook(self, gates, first, widths)
            gates.keep_until_removed(block.hook_features(hook))
            first += size

    def scores(self, gates: HeadGates, sizes: Tensor | None = None) -> Tensor:
        """Return the importance of each gate per size, ``[num_gates]``, with a norm of one in each layer."""
        layers = per_size(self._summed(gates), gates, sizes).split(gates.block_sizes)
        # The constant is that of the authors' program; a layer without an open head stays zero.
        norms = [layer.norm() + 1e-20 for layer in layers]
        if len(gates.units) > 1:
            norms = [norm / len(layer) ** 0.5 for norm, layer in zip(norms, layers, strict=True)]
        normalized = [layer / norm for layer, norm in zip(layers, norms, strict=True)]
        return torch.cat(normalized).to(gates.log_alpha.device)

    def start_over(self, gates: HeadGates) -> None:
        """Discard the importance so far."""
        self.importance.zero_()

    def of_batch(self, head_outputs: Tensor, gradient: Tensor, num_gates: int, widths: Sequence[int]) -> Tensor:
        """Return the absolute derivative of each example's loss by each gate of a block, summed, ``[num_gates]``.

        With ``xi_h`` the mask variable that multiplies the output ``Att_h(x)`` of a head, the importance is ``I_h = E_x
        |dL(x) / d xi_h| = E_x |Att_h(x)^T dL(x) / d Att_h(x)|`` (paper, equation 2 and the one below it), so the
        absolute value is taken for each example. The authors' program takes it for each token, and the one in
        transformers' examples for each batch. The mean differs from the sum by a factor that the normalization cancels.
        The arguments are those of :func:`derivatives`.
        """
        per_example = derivatives(head_outputs, gradient, num_gates, widths).sum(dim=1)
        # Gradients are infinite at steps that a gradient scaler skips.
        summed: Tensor = per_example.abs().nan_to_num(0.0, 0.0, 0.0).sum(dim=0)
        return summed

    def _summed(self, gates: HeadGates) -> Tensor:
        """Return the importance over the batches of all processes, ``[num_gates]``."""
        self.check_search(gates)
        importance = self.importance.clone()
        if distributed.is_available() and distributed.is_initialized():
            # The mean is over the examples of all processes, as one process would have it.
            distributed.all_reduce(importance)
        return importance


class Fisher(Importance):
    """A ranking by the diagonal of the empirical Fisher information of the gates, in all layers together.

    Kwon et al. 2022, arXiv 2204.09656: ``I_h = E_x (dL(x) / d xi_h)^2`` with the mask variable ``xi_h`` of a head or of
    a group of neurons (section 4.1). To second order, the rise of the loss of a trained model without it is
    proportional to it. Unlike in :class:`Importance` it is not normalized in each layer, since layers differ in it: on
    a decoder of 30 layers such a norm loses most of what the ranking knows. Where heads and neurons compete, it is that
    of a unit of their cost.

    The paper rearranges the mask in each layer by the interactions of its units, and tunes their values; neither is
    here.
    """

    def __init__(self, *, per: Literal["example", "token"] = "example") -> None:
        """Set the terms that are squared.

        Args:
            per: ``example``, as in the paper; or ``token``, the part of each token in the derivative: for language
                models, whose examples are tokens, the estimate with the smaller variance.

        Raises:
            InputError: ``per`` is another word.
        """
        super().__init__()
        if per not in ("example", "token"):
            raise InputError(f"per={per!r} is no part of a batch: give example or token.")
        self._per = per

    def scores(self, gates: HeadGates, sizes: Tensor | None = None) -> Tensor:
        """Return the information of each gate per size, ``[num_gates]``, over the largest of all."""
        found = per_size(self._summed(gates).cpu().double(), gates, sizes)
        # The scale is free; sums of squares may be below what single precision holds.
        scores = found / found.max().clamp_min(torch.finfo(torch.float64).tiny)
        return scores.float().to(gates.log_alpha.device)

    def of_batch(self, head_outputs: Tensor, gradient: Tensor, num_gates: int, widths: Sequence[int]) -> Tensor:
        """Return the sum of squares of a batch for the gates of a block, ``[num_gates]``."""
        terms = derivatives(head_outputs, gradient, num_gates, widths)
        squares = (terms if self._per == "token" else terms.sum(dim=1, keepdim=True)).square()
        return squares.nan_to_num(0.0, 0.0, 0.0).sum(dim=(0, 1))


def derivatives(head_outputs: Tensor, gradient: Tensor, num_gates: int, widths: Sequence[int] = ()) -> Tensor:
    """Return the part of each position in the derivative of the loss by each gate, ``[batch, positions, num_gates]``.

    Args:
        head_outputs: Input of an output or down projection, ``[batch, ..., features]``; without positions, it has one.
        gradient: Gradient of the loss with respect to this input, of the same shape.
        num_gates: Number of gates of the block; each multiplies an equal part of the last dimension.
        widths: Features of each gate if they differ.

    Example:
        >>> derivatives(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1.0, 0.0, -1.0, 0.0]]), 2)
        tensor([[[ 1., -3.]]])
    """
    products = (head_outputs.float() * gradient.float()).reshape(len(head_outputs), -1, head_outputs.shape[-1])
    if len(set(widths)) > 1:
        return torch.stack([features.sum(dim=-1) for features in products.split(list(widths), dim=-1)], dim=-1)
    by_gate: Tensor = products.unflatten(-1, (num_gates, -1)).sum(dim=-1)
    return by_gate


class _SensitivityHook(nn.Module):
    """A hook on the outputs of heads or neurons that adds their sensitivity to the ranking in the backward pass.

    A module, not a closure: a copy of the model has its own.
    """

    ranking: Importance
    gates: HeadGates

    def __init__(self, ranking: Importance, gates: HeadGates, first: int, widths: Sequence[int]) -> None:
        super().__init__()
        # They are no submodules: the ranking belongs to the objective, and the gates to the model.
        object.__setattr__(self, "ranking", ranking)
        object.__setattr__(self, "gates", gates)
        self._first = first
        self._widths = tuple(widths)
        self._search_number = ranking._search_number

    def forward(self, head_outputs: Tensor) -> Tensor | None:
        # Inside of a checkpoint, the first run of this hook has no gradient; the run in the backward pass has.
        # Passes with given values prove a removal; they are not of the training.
        is_present = self._search_number == self.ranking._search_number and not self.gates.is_fixed
        if not (is_present and self.ranking.is_measuring and torch.is_grad_enabled()):
            return None
        # Below the first block, frozen weights leave nothing that needs a gradient.
        learned = head_outputs if head_outputs.requires_grad else head_outputs.detach().requires_grad_()
        learned.register_hook(partial(self._add, learned.detach()))
        return None if learned is head_outputs else learned

    @torch.no_grad()
    def _add(self, head_outputs: Tensor, gradient: Tensor) -> None:
        importance = self.ranking.importance
        num_gates = len(self._widths)
        found = self.ranking.of_batch(head_outputs, gradient, num_gates, self._widths)
        importance[self._first : self._first + num_gates] += found.to(importance.device)
