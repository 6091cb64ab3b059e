"""The dense job of a sweep that another job is compared with."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gating.errors import InputError
from gating.run.folder.contents import METRICS
from gating.run.folder.resume import is_free
from gating.run.folder.state import is_finished
from gating.run.folder.stored_settings import read_settings_of
from gating.run.settings.settings import is_dense
from gating.run.sweep.records import jobs_of
from gating.storage.same_settings import leaves
from gating.storage.tables import finite_number, read_table

__all__ = ["dense_metrics"]

# Settings and groups without effect on a dense run.
_OF_GATES = ("objective", "gates", "convergence", "recovery", "latency", "optimizer.gate_lr", "optimizer.multiplier_lr")


def dense_metrics(sweep: Path, folder: Path) -> dict[str, float]:
    """Return the metrics of the dense job with the seed and the other settings of a job, such as ``val/accuracy``.

    Returns:
        The metrics; empty if there is no such job, or it is not finished, as where jobs run side by side.
    """
    wanted = _of_training(read_settings_of(folder))
    for place in (sweep / job.folder for job in jobs_of(sweep) if job.reason is None):
        # Damaged settings of another job are no error of this one.
        with suppress(InputError):
            if is_finished(place) and is_dense(stored := read_settings_of(place)) and _of_training(stored) == wanted:
                numbers = read_table(place / METRICS)
                found = {name: finite_number(value) for name, value in numbers.items()}
                return {
                    name: value
                    for name, value in found.items()
                    if value is not None and name.startswith(("val/", "test/"))
                }
    return {}


def _of_training(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run that change the results of a dense one, by dotted name."""
    return {
        name: value
        for name, value in leaves(settings)
        if not is_free(name) and not any(f"{name}.".startswith(f"{one}.") for one in _OF_GATES)
    }
