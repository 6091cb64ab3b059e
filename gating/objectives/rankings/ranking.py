"""Rankings of heads and neurons by their weights, or at random."""

from typing import SupportsIndex

import torch
from torch import Tensor, distributed

from gating.errors import InputError
from gating.gates import HeadGates
from gating.objectives.base import OfOneSearch

__all__ = ["Magnitude", "RandomOrder", "Ranking", "per_size"]


class Ranking(OfOneSearch):
    """Base class of rankings of heads and neurons for :class:`IterativePruning` and :class:`DeterministicBudget`.

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
            sizes: What each gate takes of the budget, ``[num_gates]``: its units, or its share of the cost for which
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
    heads and neurons of all layers. Norms of different layers are compared without normalization.

    Example:
        >>> from gating import inject_gates
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> Magnitude().scores(inject_gates(model)).shape
        torch.Size([8])
    """

    @torch.no_grad()
    def scores(self, gates: HeadGates, sizes: Tensor | None = None) -> Tensor:
        """Return the norm of each gate's units per size, ``[num_gates]``."""
        device = gates.log_alpha.device
        norms = [
            block.norms().view(size, -1).sum(dim=1).to(device)
            for block, size in zip(gates.blocks(), gates.block_sizes, strict=True)
        ]
        return per_size(torch.cat(norms), gates, sizes)


class RandomOrder(Ranking):
    """A random ranking that depends on its seed alone, the baseline of all other rankings.

    Example:
        >>> from gating import inject_gates
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> gates = inject_gates(model)
        >>> torch.equal(RandomOrder(seed=1).scores(gates), RandomOrder(seed=1).scores(gates))
        True
    """

    def __init__(self, *, seed: int = 0) -> None:
        """Set the seed.

        Raises:
            InputError: The seed is not an integer, or is out of the range of torch's generators.
        """
        super().__init__()
        if not (isinstance(seed, SupportsIndex) and -(2**63) <= seed < 2**64):
            raise InputError(f"seed={seed!r} cannot be used: give an integer such as 0, of at most 64 bits.")
        self._seed = seed

    def scores(self, gates: HeadGates, sizes: Tensor | None = None) -> Tensor:
        """Return a random number from 0 to 1 for each gate, ``[num_gates]``, the same at every call."""
        generator = torch.Generator().manual_seed(self._seed)
        return torch.rand(gates.log_alpha.numel(), generator=generator, device="cpu").to(gates.log_alpha.device)


def per_size(totals: Tensor, gates: HeadGates, sizes: Tensor | None) -> Tensor:
    """Divide totals of gates by their sizes, or by their numbers of units without sizes, ``[num_gates]``."""
    if sizes is None:
        sizes = torch.tensor(gates.units_per_gate, device="cpu")
    return totals / sizes.masked_fill(sizes == 0, 1).to(totals.device, totals.dtype)
