"""The CSV log of a resumed run."""

import csv

from pytorch_lightning.loggers import Logger

from gating.tracking.csv_log import CsvLogger
from gating.tracking.position import log_position, return_to


def open_log(folder) -> CsvLogger:
    return CsvLogger(folder, name="csv", version="")


def rows_of(folder) -> list[dict[str, str]]:
    with (folder / "csv" / "metrics.csv").open() as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def test_a_resumed_log_appends_rows_with_the_same_and_with_new_columns(tmp_path):
    first = open_log(tmp_path)
    first.log_metrics({"loss": 1.0}, step=0)
    first.save()
    second = open_log(tmp_path)
    second.log_metrics({"loss": 0.5}, step=1)
    second.log_metrics({"accuracy": 0.9}, step=1)
    second.save()
    assert rows_of(tmp_path) == [
        {"loss": "1.0", "step": "0"},
        {"loss": "0.5", "step": "1"},
        {"accuracy": "0.9", "step": "1"},
    ]


def test_rows_after_a_checkpoint_are_dropped(tmp_path):
    loggers: list[Logger] = [open_log(tmp_path)]
    assert log_position(loggers) == {"rows": 0}
    return_to(loggers, {"rows": 3})
    for step in range(4):
        loggers[0].log_metrics({"loss": float(step)}, step=step)
    loggers[0].save()
    assert log_position(loggers) == {"rows": 4}
    again: list[Logger] = [open_log(tmp_path)]
    return_to(again, {"rows": 2})
    assert [row["step"] for row in rows_of(tmp_path)] == ["0", "1"]
    return_to(again, {"rows": 5})
    again[0].log_metrics({"loss": 2.0}, step=2)
    again[0].save()
    assert [row["step"] for row in rows_of(tmp_path)] == ["0", "1", "2"]
    assert log_position(again) == {"rows": 3}
