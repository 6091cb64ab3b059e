"""Rankings of heads and neurons: by weights, at random, and by the sensitivity of the loss to each gate."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, distributed, nn

from gating.errors import InputError
from gating.gates import HeadGates
from gating.objectives.base import OfOneSearch


class Ranking(OfOneSearch):
    """Base class of rankings of heads and neurons for :class:`~gating.objectives.IterativePruning` and others.

    A ranking is a module, so that its buffers are in checkpoints. A subclass overrides :meth:`scores`, and the others
    if it has statistics.

    Attributes:
        is_measuring: Whether statistics are collected; objectives that have ranked end it, since it takes time.
    """

    is_measuring = True

    def attach(self, gates: HeadGates) -> None:
        """Connect to the gates before training, and begin anew."""
        self._search_number = gates.search_number
        self.is_measuring = True

    def scores(self, gates: HeadGates, sizes: Tensor | None = None) -> Tensor:
        """Return a score per size for each gate, ``[num_gates]``; those with low scores close first.

        Args:
            gates: The gates.
            sizes: Share of each gate in the budget, ``[num_gates]``: its units, or its share of the cost for which
                gates compete; 0 for padding. Units if left out.
        """
        raise NotImplementedError

    def scores_of_all(self, gates: HeadGates, sizes: Tensor) -> Tensor:
        """Return the sum of the scores of all processes, which have different batches but must decide alike."""
        scores = self.scores(gates, sizes)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(scores)
        return scores

    def start_over(self, gates: HeadGates) -> None:
        """Discard all statistics, since a round has ended or the first one begins."""


class Magnitude(Ranking):
    """A ranking by the L1 norm of the weights of each head, or group of neurons, at the time of a round.

    ``torch.nn.utils.prune.ln_structured`` with ``n=1`` ranks the rows of one layer in this way; this class ranks the
    heads and neurons of all layers, without normalization. Beside neurons it is the mean of the weights, whatever they
    cost: norms are no parts of a loss, and so alike that per cost nearly all heads would go, or none.
    """

    @torch.no_grad()
    def scores(self, gates: HeadGates, sizes: Tensor | None = None) -> Tensor:
        """Return the mean norm of each gate's units, ``[num_gates]``; with gates on neurons, that of its weights."""
        device = gates.log_alpha.device
        norms = [
            block.norms().view(size, -1).sum(dim=1).to(device)
            for block, size in zip(gates.blocks(), gates.block_sizes, strict=True)
        ]
        return per_size(torch.cat(norms), gates, gates.parameters_per_gate if "neurons" in gates.units else None)


class RandomOrder(Ranking):
    """A random ranking that depends on its seed alone, the baseline of all other rankings."""

    def __init__(self, *, seed: int = 0) -> None:
        """Set the seed, an integer."""
        super().__init__()
        self._seed = torch.Generator().manual_seed(seed).initial_seed()

    def scores(self, gates: HeadGates, sizes: Tensor | None = None) -> Tensor:
        """Return a random number from 0 to 1 for each gate, ``[num_gates]``, the same at every call."""
        generator = torch.Generator().manual_seed(self._seed)
        return torch.rand(gates.log_alpha.numel(), generator=generator, device="cpu").to(gates.log_alpha.device)


def per_size(totals: Tensor, gates: HeadGates, sizes: Tensor | None) -> Tensor:
    """Divide totals of gates by their sizes, or by their numbers of units without sizes, ``[num_gates]``."""
    if sizes is None:
        sizes = torch.tensor(gates.units_per_gate, device="cpu")
    return totals / sizes.masked_fill(sizes == 0, 1).to(totals.device, totals.dtype)


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
        |dL(x) / d xi_h| = E_x |Att_h(x)^T dL(x) / d Att_h(x)|`` (paper, equation 2 and the one below it). The authors'
        program takes the absolute value for each token, the one in transformers' examples for each batch. The
        normalization cancels the factor of the mean.
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

    Both tensors are ``[batch, ..., features]``, at the input of an output or down projection. Each gate multiplies an
    equal part of the features, or those of its width.
    """
    products = (head_outputs.float() * gradient.float()).reshape(len(head_outputs), -1, head_outputs.shape[-1])
    if len(set(widths)) > 1:
        return torch.stack([features.sum(dim=-1) for features in products.split(list(widths), dim=-1)], dim=-1)
    by_gate: Tensor = products.unflatten(-1, (num_gates, -1)).sum(dim=-1)
    return by_gate


class _SensitivityHook(nn.Module):
    """A hook that adds the sensitivity of heads or neurons to the ranking; a module: a copied model has its own."""

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
