"""Random ranking of heads and neurons, the baseline of all other rankings."""

from typing import SupportsIndex

import torch
from torch import Tensor, nn

from gating.errors import InputError
from gating.gates import HeadGates

__all__ = ["RandomOrder"]


class RandomOrder(nn.Module):
    """A random ranking that depends on its seed alone.

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

    def attach(self, gates: HeadGates) -> None:
        """Change nothing: the order depends on the seed alone."""

    def scores(self, gates: HeadGates) -> Tensor:
        """Return a random number from 0 to 1 for each gate, ``[num_gates]``, the same at every call."""
        generator = torch.Generator().manual_seed(self._seed)
        return torch.rand(gates.log_alpha.numel(), generator=generator, device="cpu").to(gates.log_alpha.device)

    def start_over(self, gates: HeadGates) -> None:
        """Change nothing: the order is the same in all rounds."""
