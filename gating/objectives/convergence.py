"""Convergence of the search for heads and neurons."""

import itertools

import torch
from torch import Tensor

from gating.errors import InputError
from gating.gates import HeadGates
from gating.objectives.gate_metrics import quantity_of, share_undecided
from gating.objectives.parts import COST

__all__ = ["Convergence"]


class Convergence:
    """A test whether gates have converged: the same ones are kept at several checks, and few are undecided.

    Before its budget is reached, a search has more open heads than it will keep, and has not converged.

    Example:
        >>> from gating import inject_gates
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> gates, convergence = inject_gates(model), Convergence(patience=1)
        >>> convergence.update(gates)
        >>> convergence.update(gates)
        'the same 8 heads were kept at 2 checks in a row, and 0% of the gates are undecided'
    """

    def __init__(self, *, patience: int = 5, max_undecided: float = 0.05) -> None:
        """Set the criterion.

        Args:
            patience: Number of consecutive checks, after the first, at which the same heads must be kept.
            max_undecided: Largest share of gates that may be neither open nor closed, ``0.05 < z < 0.95``.

        Raises:
            InputError: ``patience`` is below 1, or ``max_undecided`` is not between 0 and 1.
        """
        if not (patience >= 1 and 0 <= max_undecided <= 1):
            raise InputError(
                f"Give patience of 1 or more, got {patience}, and max_undecided of 0 to 1, got {max_undecided}."
            )
        self._patience = patience
        self._max_undecided = max_undecided
        self.begin()

    def begin(self) -> None:
        """Forget all checks, as at the start of a search."""
        self._kept: list[bool] = []
        self._num_unchanged = 0
        self._search_number: int | None = None

    @torch.no_grad()
    def update(self, gates: HeadGates, kept: Tensor | None = None) -> str | None:
        """Check the gates once.

        This synchronizes with the device: call it every few steps. Processes with the same gates get the same
        result. The first check in another search begins anew.

        Args:
            gates: The gates in training.
            kept: Gates that stay if the search ends now, ``[num_gates]``, from an objective's ``kept``; the open ones
                if left out.

        Returns:
            The reason to end the search, as a sentence for the log; None to continue.
        """
        if self._search_number not in (None, gates.search_number):
            self.begin()
        self._search_number = gates.search_number
        values = gates.values()
        is_open = values > 0
        now = (is_open if kept is None else kept).tolist()
        self._num_unchanged = self._num_unchanged + 1 if now == self._kept else 0
        self._kept = now
        undecided = float(share_undecided(gates))
        num_others = sum(one != other for one, other in zip(is_open.tolist(), now, strict=True))
        # A budget of cost holds whole gates: the rest of it may leave another gate open.
        allowed = max(1, len(now) // 100) if quantity_of(gates, gates.objective) == COST else 0
        if self._num_unchanged < self._patience or undecided > self._max_undecided or num_others > allowed:
            return None
        kept_units = " and ".join(f"{sum(itertools.compress(gates.counts[unit], now))} {unit}" for unit in gates.units)
        return (
            f"the same {kept_units} were kept at {self._num_unchanged + 1} checks in a row, and "
            f"{undecided:.0%} of the gates are undecided"
        )

    def state_dict(self) -> dict[str, object]:
        """Return the state for a checkpoint."""
        return {"kept": list(self._kept), "num_unchanged": self._num_unchanged}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore the state of a checkpoint."""
        kept, num_unchanged = state["kept"], state["num_unchanged"]
        assert isinstance(kept, list)
        assert isinstance(num_unchanged, int)
        self._kept, self._num_unchanged, self._search_number = list(kept), num_unchanged, None
