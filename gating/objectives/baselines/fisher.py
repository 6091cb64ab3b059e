"""Ranking of heads and neurons by the Fisher information of their gates (Kwon et al. 2022, arXiv 2204.09656)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from gating.errors import InputError
from gating.gates import HeadGates
from gating.objectives.baselines.importance import Importance, derivatives

__all__ = ["Fisher"]


class Fisher(Importance):
    """A ranking by the diagonal of the empirical Fisher information of the gates, in all layers together.

    ``I_h = E_x (dL(x) / d xi_h)^2`` with the mask variable ``xi_h`` of a head or of a group of neurons (paper,
    section 4.1): to second order, the rise of the loss of a trained model without it is proportional to it. Unlike in
    :class:`Importance` it is not normalized in each layer, since layers differ in it: on a decoder of 30 layers such a
    norm loses most of what the ranking knows. Where heads and neurons compete, it is that of a multiply-accumulate.

    The paper rearranges the mask in each layer by the interactions of its units, and tunes their values; neither is
    here.

    Example:
        >>> from gating import inject_gates
        >>> from transformers import BertConfig, BertModel
        >>> _ = torch.manual_seed(0)  # No gate is drawn as closed.
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> gates, ranking = inject_gates(model), Fisher()
        >>> ranking.attach(gates)
        >>> model(torch.tensor([[1, 2, 3]])).last_hidden_state.square().sum().backward()
        >>> bool((ranking.scores(gates) > 0).all())
        True
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

    def scores(self, gates: HeadGates) -> Tensor:
        """Return the information of one unit of each gate, or of one multiply-accumulate, ``[num_gates]``."""
        amounts = torch.tensor(gates.units_per_gate, dtype=torch.float64, device="cpu")
        if len(gates.units) > 1:
            amounts = gates.macs_per_gate.cpu()
        per_amount = self._summed(gates).double().cpu() / amounts.clamp_min(1)
        # The scale is free; sums of squares may be below what single precision holds.
        scores = per_amount / per_amount.max().clamp_min(torch.finfo(torch.float64).tiny)
        return scores.float().to(gates.log_alpha.device)

    def of_batch(self, head_outputs: Tensor, gradient: Tensor, num_gates: int, widths: Sequence[int]) -> Tensor:
        """Return the sum of squares of a batch for the gates of a block, ``[num_gates]``."""
        terms = derivatives(head_outputs, gradient, num_gates, widths)
        squares = (terms if self._per == "token" else terms.sum(dim=1, keepdim=True)).square()
        return squares.nan_to_num(0.0, 0.0, 0.0).sum(dim=(0, 1))
