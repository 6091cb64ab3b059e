"""TensorBoard logger in the folder of a run, continued by a resumed run."""

import uuid
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path

from matplotlib.figure import Figure
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from gating.errors import MissingPackageError

from gating.storage.written import note_written, written_in
from gating.tracking.contents import EVENT_FILES, TENSORBOARD

__all__ = ["TensorBoardLog", "find_event_files", "log_figure"]


class TensorBoardLog(TensorBoardLogger):
    """Lightning's TensorBoard logger, with event files that a resumed run cuts off at its checkpoint."""

    def __init__(self) -> None:
        """Create the logger; :meth:`enter` gives its folder.

        Raises:
            MissingPackageError: TensorBoard is not installed.
        """
        if find_spec("tensorboard") is None:
            raise MissingPackageError(
                "logger=tensorboard needs the package tensorboard: pip install 'head-gating[tensorboard]'"
            )
        # Event files of other programs have other names.
        self._suffix = f".{uuid.uuid4().hex}"
        super().__init__("", name=TENSORBOARD, version="", default_hp_metric=False, filename_suffix=self._suffix)
        self._earlier: list[Path] = []

    def enter(self, folder: Path) -> None:
        """Set the folder of the run; nothing is written before the first value."""
        self._root_dir = str(folder)
        self._earlier = find_event_files(folder)
        self._note(folder)

    @rank_zero_only
    def _note(self, folder: Path) -> None:
        """Add the names of the event files of this process to the record of the run."""
        note_written(folder, f"{TENSORBOARD}/{EVENT_FILES}{self._suffix}")

    @rank_zero_only
    def save(self) -> None:
        """Write pending events; the settings are in the run's ``config.yaml``."""
        if self._experiment is not None:
            self._experiment.flush()

    @rank_zero_only
    def log_outcome(self, numbers: Mapping[str, float]) -> None:
        """Log the final numbers of a run beside its settings, by which TensorBoard compares runs."""
        self.log_hyperparams(self.hparams, metrics=dict(numbers))
        self.save()

    @rank_zero_only
    def log_texts(self, name: str, samples: Sequence[Mapping[str, str]]) -> None:
        """Log texts, each as a list of its labels and values."""
        for number, sample in enumerate(samples):
            lines = "\n".join(f"- **{label}**: {text}" for label, text in sample.items())
            self.experiment.add_text(name, lines, global_step=number)
        self.save()

    def position(self) -> dict[str, int]:
        """Return the size of each event file in bytes, by name, with pending events written."""
        self.save()
        return {path.name: path.stat().st_size for path in find_event_files(Path(self._root_dir))}

    def return_to(self, position: Mapping[str, int]) -> None:
        """Truncate the event files of earlier processes to their sizes at a position, and remove those without one."""
        earlier, self._earlier = self._earlier, []
        for path in earlier:
            if path.name not in position:
                path.unlink()
            elif path.stat().st_size > position[path.name]:
                with path.open("r+b") as file:
                    file.truncate(position[path.name])


@rank_zero_only
def log_figure(logger: TensorBoardLogger, name: str, figure: Figure, *, step: int) -> None:
    """Log a figure as an image."""
    logger.experiment.add_figure(name, figure, global_step=step)


def find_event_files(run: Path) -> list[Path]:
    """Return the event files of a run by the patterns of names in its record; others may lie beside them."""
    patterns, folder = written_in(run) or (), run / TENSORBOARD
    # A link may lead to the events of other runs.
    found = [path for path in folder.glob(EVENT_FILES) if not path.is_symlink()]
    return sorted(path for path in found if any(fnmatchcase(f"{TENSORBOARD}/{path.name}", one) for one in patterns))
