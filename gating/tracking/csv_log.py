"""CSV logger that appends to the file of a resumed run."""

import csv
from collections.abc import Mapping
from pathlib import Path

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from gating.storage.files import replacing_file
from gating.tracking.contents import CSV_FILES

__all__ = ["CsvLogger", "read_log"]

# Name of the number of rows in a position.
_ROWS = "rows"


def read_log(folder: Path) -> list[dict[str, float]]:
    """Return the rows of a run's CSV file, each with its values by name; none without a file."""
    _, rows = _read(folder / CSV_FILES[0])
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the names and the rows of a CSV file; none without a file."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            return list(reader.fieldnames or ()), list(reader)
    except FileNotFoundError:
        return [], []


class _CsvWriter(ExperimentWriter):
    """Lightning's writer, which also appends to an existing file."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self.metrics_keys, _ = _read(Path(self.metrics_file_path))

    def read_rows(self) -> list[dict[str, str]]:
        """Return the rows of the file; none without a file."""
        return _read(Path(self.metrics_file_path))[1]

    def keep_rows(self, number: int) -> None:
        """Truncate the file to the first ``number`` rows."""
        rows = self.read_rows()
        if len(rows) > number:
            self._write(self.metrics_keys, rows[:number])

    def _check_log_dir_exists(self) -> None:
        """Keep the existing file: it belongs to the same run."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self._write(fieldnames, self.read_rows())

    def _write(self, fieldnames: list[str], rows: list[dict[str, str]]) -> None:
        with (
            replacing_file(Path(self.metrics_file_path)) as new,
            new.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.DictWriter(file, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(rows)


class CsvLogger(CSVLogger):
    """Lightning's logger with a writer that appends to an existing file."""

    @property
    @rank_zero_experiment
    def experiment(self) -> _CsvWriter:
        """The writer of the file."""
        if self._experiment is None:
            self._experiment = _CsvWriter(self.log_dir)
        assert isinstance(self._experiment, _CsvWriter)
        return self._experiment

    def position(self) -> dict[str, int]:
        """Return the number of rows in the file."""
        return {_ROWS: len(self.experiment.read_rows())}

    def return_to(self, position: Mapping[str, int]) -> None:
        """Truncate the file to the rows of a position."""
        self.experiment.keep_rows(position.get(_ROWS, 0))
