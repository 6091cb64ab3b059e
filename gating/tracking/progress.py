"""Progress bars of long work: one that moves in a terminal; in a log, its present state from time to time."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from gating.distributed.collectives import is_rank_zero

# Seconds between two states of a bar in a log.
_QUIET_S = 30.0


def bar(items: Iterable[Any] | None = None, *, title: str, total: int, unit: str, initial: int = 0) -> "tqdm[Any]":
    """Return a progress bar of items, or of units that its ``update`` counts; only rank 0 shows it."""
    is_log = not sys.stdout.isatty()
    # Each state is a line of its own, written when a unit ends.
    state = "{desc} {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]\n"
    times: dict[str, Any] = {"delay": _QUIET_S, "mininterval": _QUIET_S, "bar_format": state} if is_log else {}
    # Of a log, nothing that was written can be cleared.
    options = {"file": sys.stdout, "leave": is_log, "dynamic_ncols": True, "disable": not is_rank_zero()}
    return tqdm(items, desc=title, total=total, unit=f" {unit}", initial=initial, **options, **times)
