"""Processes of a run, one for each device: their start, exchange of values and end."""

import os

# Turns of the loop in which a thread of GCC's OpenMP waits before it sleeps; by default it spins for minutes.
_VARIABLE, _TURNS = "GOMP_SPINCOUNT", "1000"


def limit_spinning() -> None:
    """Let OpenMP threads sleep soon while they wait, in this process and those that it starts.

    On a busy machine, threads that spin keep those that compute from the processor.
    Where the environment has ``OMP_WAIT_POLICY`` or ``GOMP_SPINCOUNT``, nothing changes. Torch reads them when it is
    imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault(_VARIABLE, _TURNS)
