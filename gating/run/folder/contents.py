"""Files and folders in the folder of a run, and the phases that checkpoints are named after."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from gating.storage.written import WRITTEN

__all__ = [
    "CHECKPOINTS",
    "CLEARED",
    "COMPACT",
    "CONFIG",
    "EXPORTS",
    "FILES",
    "FIRST_FILES",
    "FOLDERS",
    "GATES_PICTURE",
    "HISTORY_PICTURE",
    "INPUTS",
    "LAST_FILES",
    "LOCK",
    "METRICS",
    "MODELS",
    "OTHER_FILES",
    "OWNER_MARK",
    "PAGE",
    "RECIPE",
    "RECORD_FILES",
    "REPLACED_FOLDERS",
    "REPORT",
    "SAMPLES",
    "STATE_FILES",
    "TEACHER",
    "Phase",
    "RunPaths",
    "is_run",
]


class Phase(StrEnum):
    """Phases of a run, in their order; the values are the names of checkpoint folders."""

    TEACHER = "teacher"
    DENSE = "dense"
    SEARCH = "search"
    # This is the model between removal and recovery.
    REMOVED = "removed"
    RECOVERY = "recovery"


# Settings of the run, written first, and its results, written last: a folder with results is finished.
CONFIG, METRICS = "config.yaml", "metrics.json"
# Its data, model and teacher by their content.
INPUTS = "inputs.json"
# The process that trains holds this lock.
LOCK = ".lock"
# Settings of an earlier run while a new one removes its files, so that an interrupted removal can be continued.
CLEARED = ".config.yaml.old"
# The run's folder and a checkpoint folder elsewhere hold the same random number.
OWNER_MARK = ".run-of-checkpoints"

CHECKPOINTS, REPORT = "checkpoints", "report"
# Folders of the loggers.
CSV, TENSORBOARD, WANDB = "csv", "tensorboard", "wandb"
CSV_FILES = (f"{CSV}/metrics.csv", f"{CSV}/hparams.yaml")
# These files are in the folder of the report.
GATES_PICTURE, HISTORY_PICTURE, SAMPLES, PAGE = "gates.png", "history.png", "samples.jsonl", "index.html"
COMPACT, RECIPE, TEACHER = "compact", "recipe", "teacher"

RECORD_FILES = (CONFIG, METRICS)
_REPORT_FILES = (GATES_PICTURE, HISTORY_PICTURE, SAMPLES, PAGE)
# Files that a new run in the same folder replaces, besides those.
OTHER_FILES = (*CSV_FILES, *(f"{REPORT}/{name}" for name in _REPORT_FILES), OWNER_MARK, INPUTS)
FILES = (*RECORD_FILES, *OTHER_FILES)
# Every run has the first of these from its first step on, and the others at its end.
FIRST_FILES = (CONFIG, OWNER_MARK, INPUTS, *CSV_FILES)
LAST_FILES = (METRICS, *(f"{REPORT}/{name}" for name in _REPORT_FILES))
# Files that a process reads and writes to know whose the others are.
STATE_FILES = (LOCK, WRITTEN)
# Folders with files that a new run replaces; the folders of W&B runs stay.
REPLACED_FOLDERS = (CHECKPOINTS, CSV, TENSORBOARD, REPORT)
FOLDERS = (*REPLACED_FOLDERS, WANDB)
# Formats that a run can export its compact model to, and the folders of these exports.
EXPORTS = {name: f"{COMPACT}-{name}" for name in ("onnx", "onnx-int8", "openvino", "gguf", "gguf-q8_0")}
# These folders hold saved models.
MODELS = (COMPACT, RECIPE, TEACHER, *EXPORTS.values())


def is_run(folder: Path) -> bool:
    """Return whether a folder holds a run."""
    return (folder / CONFIG).is_file()


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
    def recipe(self) -> Path:
        """Folder of the recipe, which a run on frozen weights writes."""
        return self.folder / RECIPE

    @property
    def teacher(self) -> Path:
        """Folder of the dense model that this run trains to distill from."""
        return self.folder / TEACHER

    @property
    def report(self) -> Path:
        """Folder of the page, the figures and the samples."""
        return self.folder / REPORT

    def of_phase(self, phase: Phase) -> Path:
        """Return the folder of a phase's checkpoints."""
        return self.checkpoints / phase
