"""When the search for heads has found them."""

import torch
from torch import Tensor

from gating.errors import InputError
from gating.gates import HeadGates

__all__ = ["Convergence"]


class Convergence:
    """Notices that gates have come to rest: the same heads stay, check after check, and hardly one is undecided.

    A search that is still on its way to its budget has more heads open than will be kept, and has not converged,
    however steady it is.
    """

    def __init__(self, *, patience: int = 5, max_undecided: float = 0.05) -> None:
        """Say what coming to rest means.

        Args:
            patience: At how many checks in a row, after the first, the same heads have to be kept.
            max_undecided: Largest share of gates that may be neither open nor closed, ``0.05 < z < 0.95``.

        Raises:
            ValueError: ``patience`` is no positive number, or ``max_undecided`` no share.
        """
        if patience < 1:
            raise InputError(f"patience={patience} checks cannot be waited for: give 1 or more.")
        if not 0 <= max_undecided <= 1:
            raise InputError(f"max_undecided={max_undecided} is not a share of gates: give a number from 0 to 1.")
        self._patience = patience
        self._max_undecided = max_undecided
        self._kept: list[bool] = []
        self._num_unchanged = 0

    @torch.no_grad()
    def update(self, gates: HeadGates, kept: Tensor | None = None) -> str | None:
        """Look at the gates once more.

        This waits for the device: call it now and then, not at every step. It has the same answer on every process
        that has the same gates.

        Args:
            gates: The gates that are trained.
            kept: Which of them would stay if the search ended now, from an objective's ``kept``; those that are open
                when left out.

        Returns:
            Why the search may end, as a sentence for the log; None if it has to go on.
        """
        values = gates.values()
        is_open = values > 0
        now = (is_open if kept is None else kept).tolist()
        self._num_unchanged = self._num_unchanged + 1 if now == self._kept else 0
        self._kept = now
        undecided = float(((values > 0.05) & (values < 0.95)).float().mean())
        if self._num_unchanged < self._patience or undecided > self._max_undecided or is_open.tolist() != now:
            return None
        num_heads = sum(heads for heads, stays in zip(gates.heads_per_gate, now, strict=True) if stays)
        return (
            f"the same {num_heads} heads were kept at {self._num_unchanged + 1} checks in a row, and "
            f"{undecided:.0%} of the gates are undecided"
        )

    def state_dict(self) -> dict[str, object]:
        """Return what has been seen, for a checkpoint."""
        return {"kept": list(self._kept), "num_unchanged": self._num_unchanged}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from a checkpoint."""
        kept, num_unchanged = state["kept"], state["num_unchanged"]
        assert isinstance(kept, list)
        assert isinstance(num_unchanged, int)
        self._kept, self._num_unchanged = list(kept), num_unchanged
