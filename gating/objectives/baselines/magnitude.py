"""Ranking of heads and neurons by their weights: the structured form of magnitude pruning."""

import torch
from torch import Tensor, nn

from gating.gates import HeadGates
from gating.units import unit_of

__all__ = ["Magnitude"]


class Magnitude(nn.Module):
    """A ranking by the L1 norm of the weights of each head at the time of a round.

    ``torch.nn.utils.prune.ln_structured`` with ``n=1`` ranks the rows of one layer in this way; this class ranks the
    heads of all layers, by :func:`~gating.units.heads.head_norms`, and groups of neurons, by
    :func:`~gating.units.neurons.neuron_norms`. Norms of different
    layers are compared without normalization; those of neurons, and of heads beside them, are divided by the number of
    parameters.

    Example:
        >>> from gating import inject_gates
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> Magnitude().scores(inject_gates(model)).shape
        torch.Size([8])
    """

    def attach(self, gates: HeadGates) -> None:
        """Change nothing: the weights are read at each round."""

    @torch.no_grad()
    def scores(self, gates: HeadGates) -> Tensor:
        """Return the mean norm of the units of each gate, ``[num_gates]``; with neurons, the mean of its parameters."""
        device = gates.log_alpha.device
        norms = [
            unit_of(block).norms(block).view(size, -1).sum(dim=1).to(device)
            for block, size in zip(gates.blocks(), gates.block_sizes, strict=True)
        ]
        if not gates.is_weighed:
            return torch.cat(norms) / torch.tensor(gates.units_per_gate, device=device).clamp_min(1)
        return torch.cat(norms) / gates.parameters_per_gate.float().to(device)

    def start_over(self, gates: HeadGates) -> None:
        """Change nothing: there are no statistics."""
