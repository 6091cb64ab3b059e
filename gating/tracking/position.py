"""Position in the logs of a run at a checkpoint, to which a resumed run returns."""

from collections.abc import Mapping, Sequence
from typing import Any

from pytorch_lightning.loggers import Logger

from gating.distributed.collectives import is_rank_zero
from gating.tracking.csv_log import keep_rows, num_rows
from gating.tracking.tensorboard_log import TensorBoardLog

__all__ = ["LogPosition", "log_position", "position_in", "return_to"]

# Rows of the CSV file by the key "rows", and bytes of each event file of TensorBoard by its name.
LogPosition = dict[str, int]

_ROWS = "rows"


def log_position(loggers: Sequence[Logger]) -> LogPosition:
    """Return the position in the logs that this process writes."""
    sizes = [logger.sizes() for logger in _event_loggers(loggers)]
    return {_ROWS: num_rows(loggers), **{name: size for files in sizes for name, size in files.items()}}


def return_to(loggers: Sequence[Logger], position: LogPosition) -> None:
    """Remove everything that was logged after a position; a resumed run logs it again."""
    keep_rows(loggers, position.get(_ROWS, 0))
    for logger in _event_loggers(loggers):
        logger.cut_off(position)


def position_in(state: Mapping[str, Any]) -> LogPosition:
    """Return the position that a checkpoint holds; those of earlier versions have the number of CSV rows."""
    position: LogPosition = state["log_position"] if "log_position" in state else {_ROWS: state["num_rows"]}
    return position


def _event_loggers(loggers: Sequence[Logger]) -> list[TensorBoardLog]:
    return [logger for logger in loggers if isinstance(logger, TensorBoardLog) and is_rank_zero()]
