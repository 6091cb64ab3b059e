"""Files and folders in the folder of a run, and the phases that checkpoints are named after."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

__all__ = [
    "CHECKPOINTS",
    "CLEARED",
    "COMPACT",
    "CONFIG",
    "CSV",
    "FILES",
    "LOCK",
    "METRICS",
    "OWNER_MARK",
    "REPORT",
    "TEACHER",
    "WANDB",
    "Phase",
    "RunPaths",
]


class Phase(StrEnum):
    """Phases of a run, in their order; the values are the names of checkpoint folders."""

    TEACHER = "teacher"
    DENSE = "dense"
    SEARCH = "search"
    # The model between removal and recovery.
    REMOVED = "removed"
    RECOVERY = "recovery"


# Settings of the run, written first, and its results, written last: a folder with results is finished.
CONFIG, METRICS = "config.yaml", "metrics.json"
# Held by the process that trains.
LOCK = ".lock"
# Settings of an earlier run while a new one removes its files, so that an interrupted removal can be continued.
CLEARED = ".config.yaml.old"
# In the run's folder and in a checkpoint folder elsewhere: the same random number in both.
OWNER_MARK = ".run-of-checkpoints"

CHECKPOINTS, CSV, REPORT, WANDB = "checkpoints", "csv", "report", "wandb"
# In the folder of the report.
SAMPLES = "samples.jsonl"
# Saved models.
COMPACT, TEACHER = "compact", "teacher"

# Other files, which a new run in the same folder replaces.
FILES = (
    f"{CSV}/metrics.csv",
    f"{CSV}/hparams.yaml",
    f"{REPORT}/gates.png",
    f"{REPORT}/history.png",
    f"{REPORT}/{SAMPLES}",
    OWNER_MARK,
)


@dataclass(frozen=True)
class RunPaths:
    """Paths of one run.

    Attributes:
        folder: The run's folder.
        checkpoints: The folder with one folder of checkpoints for each phase; inside ``folder`` by default.
    """

    folder: Path
    checkpoints: Path

    @property
    def metrics(self) -> Path:
        """File of the results."""
        return self.folder / METRICS

    @property
    def compact(self) -> Path:
        """Folder of the compact model."""
        return self.folder / COMPACT

    @property
    def teacher(self) -> Path:
        """Folder of the dense model that this run trains to distill from."""
        return self.folder / TEACHER

    @property
    def report(self) -> Path:
        """Folder of the figures."""
        return self.folder / REPORT

    @property
    def samples(self) -> Path:
        """File of the texts that the compact model generated."""
        return self.report / SAMPLES

    def of_phase(self, phase: Phase) -> Path:
        """Return the folder of a phase's checkpoints."""
        return self.checkpoints / phase
