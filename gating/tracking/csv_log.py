"""The CSV file of a run's metrics, which goes on when the run does."""

import csv
from collections.abc import Sequence
from pathlib import Path

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger, Logger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from gating.distributed.collectives import is_rank_zero
from gating.storage.atomic import replacing_file

__all__ = ["CsvLogger", "keep_rows", "num_rows"]


def num_rows(loggers: Sequence[Logger]) -> int:
    """Return how many rows the CSV files of this process have on the disk."""
    return sum(len(writer.read_rows()) for writer in _writers(loggers))


def keep_rows(loggers: Sequence[Logger], number: int) -> None:
    """Leave only the first rows; an interrupted run will come to the others again."""
    for writer in _writers(loggers):
        writer.keep_rows(number)


class _CsvWriter(ExperimentWriter):
    """Lightning's writer, which can go on with a file."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self.metrics_keys = self._read()[0]

    def read_rows(self) -> list[dict[str, str]]:
        """Return what is in the file."""
        return self._read()[1]

    def keep_rows(self, number: int) -> None:
        """Leave only the first rows."""
        rows = self.read_rows()
        if len(rows) > number:
            self._write(self.metrics_keys, rows[:number])

    def _check_log_dir_exists(self) -> None:
        """Let the file be: it is of the same run."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self._write(fieldnames, self.read_rows())

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        try:
            with open(self.metrics_file_path, encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                return list(reader.fieldnames or ()), list(reader)
        except FileNotFoundError:
            return [], []

    def _write(self, fieldnames: list[str], rows: list[dict[str, str]]) -> None:
        with (
            replacing_file(Path(self.metrics_file_path)) as new,
            new.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.DictWriter(file, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(rows)


class CsvLogger(CSVLogger):
    """Lightning's logger with a writer that goes on where the file ends."""

    @property
    @rank_zero_experiment
    def experiment(self) -> _CsvWriter:
        """What writes the file."""
        if self._experiment is None:
            self._experiment = _CsvWriter(self.log_dir)
        assert isinstance(self._experiment, _CsvWriter)
        return self._experiment


def _writers(loggers: Sequence[Logger]) -> list[_CsvWriter]:
    return [logger.experiment for logger in loggers if isinstance(logger, CsvLogger) and is_rank_zero()]
