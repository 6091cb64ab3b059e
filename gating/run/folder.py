"""The folder of one run: its files, its lock, its checkpoints, its result, and the renaming of earlier files.

Nothing here imports torch before a run has checkpoints.
"""

import json
import os
import shlex
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from filelock import BaseFileLock
from typing_extensions import Self

from gating.errors import InputError
from gating.storage.files import (
    LOCK,
    check_free,
    finite_number,
    found_checkpoints,
    move_aside,
    read_table,
    remove_checkpoint,
    take_lock,
    unfinished_checkpoints,
    write_atomically,
)


class Phase(str, Enum):
    """Phases of a run, in their order; the values are the names of checkpoint folders."""

    DENSE = "dense"
    SEARCH = "search"
    # This is the model between removal and recovery.
    REMOVED = "removed"
    RECOVERY = "recovery"

    __str__ = str.__str__


# Settings of the run, written first, and its results, written last: a folder with results is finished.
CONFIG, METRICS = "config.yaml", "metrics.json"
# Windows moves no folder in which a file is open: a run lets go of its lock for that moment.
_MOVES_OPEN_FILES = os.name != "nt"
# Of metrics.json.
_FORMAT = 1
# Its data, model and teacher by their content, and its measured budget.
INPUTS = "inputs.json"
CHECKPOINTS = "checkpoints"
# Environment variables with the rank of a process, as Lightning reads them.
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def is_run(folder: Path) -> bool:
    """Return whether a folder holds a run."""
    return (folder / CONFIG).is_file()


def is_finished(folder: Path) -> bool:
    """Return whether a run is finished: its metrics are written last."""
    return (folder / METRICS).is_file()


def find_model(folder: str) -> tuple[Path | None, Path | None]:
    """Return the folder of a model, None if it is not a local one; and the folder of the run that made it, or None."""
    place = Path(folder).expanduser()
    if not place.is_dir():
        return None, None
    if is_run(place):
        if not (place / "compact").is_dir():
            raise InputError(f"The run in {folder} is not finished: {place}/compact does not exist.")
        return place / "compact", place
    if runs := sorted(path for path in place.glob("*") if is_run(path)):
        raise InputError(f"{folder} has {len(runs)} run(s): name one of them, such as {runs[0]}.")
    parent = place.resolve().parent
    return place, parent if is_run(parent) else None


class RunFolder:
    """The folder of one run, which a ``with`` block holds by its lock; other processes of the run only read it."""

    def __init__(self, path: Path, *, checkpoints: Path | None = None, resumes: bool, overwrite: bool = False) -> None:
        """Describe a folder, without writing; with ``overwrite``, files in the place of a new run may be renamed."""
        self.path, self.checkpoints = path, checkpoints or path / CHECKPOINTS
        self.resumes = resumes and is_run(path)
        self._overwrite = overwrite
        self._locks: list[BaseFileLock] = []
        # Of the names of one of several sizes.
        self.suffix = ""

    def __enter__(self) -> Self:
        """Take the locks before anything is loaded; ``FileExistsError`` if a new run must not overwrite a folder."""
        if any(os.environ.get(name, "0") != "0" for name in _RANKS):
            return self
        if not self.resumes:
            if is_run(self.path) and not is_finished(self.path) and not self._overwrite:
                raise FileExistsError(
                    f"output_dir={self.path} holds an unfinished run: resume=auto goes on with it, overwrite=true "
                    "renames it and begins again."
                )
            for setting, place in (("output_dir", self.path), ("paths.checkpoints", self.checkpoints)):
                check_free(place, overwrite=self._overwrite, setting=setting)
        self._lock()
        return self

    def of_size(self, name: str) -> "RunFolder":
        """Return the places of one of several sizes in this folder, which keeps the lock."""
        own = RunFolder(self.path, checkpoints=self.checkpoints / name, resumes=self.resumes)
        own.suffix = f"-{name}"
        return own

    def follow(self, place: tuple[Path, Path, bool]) -> None:
        """Take over folder, checkpoints and whether the run resumes from rank 0."""
        self.path, self.checkpoints, self.resumes = place

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the locks; a folder in which nothing was written is removed."""
        places = self._places if self._locks else ()
        self._unlock()
        for place in places:
            with suppress(OSError):
                if {path.name for path in place.iterdir()} == {LOCK}:
                    (place / LOCK).unlink()
                    place.rmdir()

    @property
    def _places(self) -> list[Path]:
        return [self.path] if self.checkpoints.is_relative_to(self.path) else [self.path, self.checkpoints]

    def _lock(self) -> None:
        for place in self._places:
            self._locks.append(take_lock(place, problem=f"The run in {place} is being trained by another process."))

    def _unlock(self) -> None:
        while self._locks:
            self._locks.pop().release()

    @property
    def compact(self) -> Path:
        """Folder of the compact model."""
        return self.path / f"compact{self.suffix}"

    @property
    def dense(self) -> Path:
        """Folder of the dense model that units are removed from, where the run has fine-tuned it first."""
        return self.path / "dense"

    @property
    def report(self) -> Path:
        """Folder of the page, the pictures and the samples."""
        return self.path / f"report{self.suffix}"

    @property
    def metrics(self) -> Path:
        """File of the results, which is written last."""
        return (self.path / METRICS).with_stem(f"metrics{self.suffix}")

    def export(self, name: str) -> Path:
        """Return the place of an export of the compact model, such as ``compact-onnx``."""
        place = self.path / f"compact{self.suffix}-{name}"
        return place / "compact.gguf" if name.startswith("gguf") else place

    def of_phase(self, phase: Phase) -> Path:
        """Return the folder of a phase's checkpoints."""
        return self.checkpoints / phase

    def begin(self, config: str, inputs: Mapping[str, Any]) -> None:
        """Write the settings and the inputs of a run; files in the place of a new one are renamed first."""
        occupied = [] if self.resumes else [place for place in self._places if set(os.listdir(place)) != {LOCK}]
        if occupied:
            if not _MOVES_OPEN_FILES:
                self._unlock()
            for place in occupied:
                move_aside(place)
            self._unlock()  # The locks have moved with the folders.
            self._lock()
        write_atomically(self.path / INPUTS, json.dumps(inputs, indent=1, ensure_ascii=False) + "\n")
        write_atomically(self.path / CONFIG, config)

    @property
    def saved(self) -> list[Path]:
        """The checkpoints of all phases, and the parts that a killed process has left."""
        folders = [self.of_phase(phase) for phase in Phase]
        return [path for one in folders for path in (*found_checkpoints(one), *unfinished_checkpoints(one))]

    def how_to_resume(self) -> str:
        """Return the line that says how to resume the run; an empty text if there is nothing to resume."""
        if not is_run(self.path) or is_finished(self.path):
            return ""
        if self.saved:
            return f"Resume the run: python train.py resume={shlex.quote(str(self.path))}"
        return ""

    def end(self, *, keep_checkpoints: bool) -> str:
        """Remove the checkpoints of a finished run, unless they are kept; return a sentence on their space, if any."""
        saved = self.saved
        try:
            files = [file for path in saved for file in (path, *path.rglob("*")) if file.is_file()]
            size = f"{sum(file.stat().st_size for file in files) / 1e6:,.1f} MB"
            if keep_checkpoints or not saved:
                return f"Its checkpoints in {self.checkpoints} take {size}." if saved else ""
            for path in saved:
                remove_checkpoint(path)
        except OSError as error:  # The run is finished nonetheless.
            return f"Its checkpoints in {self.checkpoints} could not be removed: {error.strerror}."
        for place in [*(self.of_phase(phase) for phase in Phase), self.checkpoints]:
            with suppress(OSError):
                place.rmdir()
        return f"Its checkpoints of {size} were removed; keep_checkpoints=true keeps them."


def stored_settings(folder: Path) -> dict[str, Any]:
    """Return a run's settings as plain values with its present place; ``FileNotFoundError`` if there is no run."""
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"There is no run in {folder} to resume: {path} does not exist.")
    from omegaconf import OmegaConf  # head-gating inspect has none.

    try:
        settings = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # YAML's own, OmegaConf's and those of decoding.
        raise InputError(
            f"{path} cannot be read: {type(error).__name__}. Begin again in another output_dir."
        ) from error
    if not isinstance(settings, dict) or not all(isinstance(settings.get(name), dict) for name in ("model", "data")):
        raise InputError(f"{path} does not have the settings of a run. Begin again in another output_dir.")
    return relocated(cast(dict[str, Any], settings), Path(os.path.abspath(folder)))


def relocated(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return settings with another folder of the run, and with the paths in it there."""
    before = str(settings.get("output_dir"))

    def moved(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: moved(inner) for name, inner in value.items()}
        is_inside = isinstance(value, str) and (value == before or value.startswith(before + os.sep))
        return f"{folder}{value[len(before) :]}" if is_inside else value

    return cast(dict[str, Any], moved(settings))


def result_of(folder: Path, name: str | None) -> float | None:
    """Return a number of a finished run by its name, None if it is not finite; by default its validation score."""
    found = read_numbers(folder)
    numbers = {key: finite_number(value) for key, value in found.items() if type(value) in (int, float, type(None))}
    if name is not None and name not in numbers:
        raise InputError(
            f"optimized_metric={name} is not in {folder / METRICS}, which has {', '.join(sorted(numbers))}."
        )
    return numbers.get(name or f"val/{found['metric']}")


def read_numbers(folder: Path) -> dict[str, Any]:
    """Return ``metrics.json`` of a run's folder; ``InputError`` if it does not have the numbers of a run."""
    found = read_table(folder / METRICS)
    if found.get("format", _FORMAT) != _FORMAT:
        raise InputError(
            f"{folder / METRICS} has the format {found['format']}, and this version reads format {_FORMAT}: use the "
            "version of head-gating that wrote it."
        )
    if not isinstance(found.get("metric"), str):
        raise InputError(f"{folder / METRICS} does not have the numbers of a run: leave it out, or train it again.")
    return found
