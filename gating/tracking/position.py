"""Position in the logs of a run at a checkpoint, to which a resumed run returns."""

from collections.abc import Mapping, Sequence

from pytorch_lightning.loggers import Logger

from gating.distributed.collectives import is_rank_zero
from gating.tracking.csv_log import CsvLogger
from gating.tracking.tensorboard_log import TensorBoardLog
from gating.tracking.wandb_logger import TolerantWandbLogger

__all__ = ["LogPosition", "log_position", "return_to"]

# Rows of the CSV file and of the W&B run, and bytes of each event file of TensorBoard, by the names of the loggers.
LogPosition = dict[str, int]


def log_position(loggers: Sequence[Logger]) -> LogPosition:
    """Return the position in the logs that this process writes."""
    position: LogPosition = {}
    for logger in _with_positions(loggers):
        position |= logger.position()
    return position


def return_to(loggers: Sequence[Logger], position: Mapping[str, int]) -> None:
    """Remove everything that was logged after a position; a resumed run logs it again."""
    for logger in _with_positions(loggers):
        logger.return_to(position)


def _with_positions(loggers: Sequence[Logger]) -> list[CsvLogger | TensorBoardLog | TolerantWandbLogger]:
    kinds = (CsvLogger, TensorBoardLog, TolerantWandbLogger)
    return [logger for logger in loggers if isinstance(logger, kinds) and is_rank_zero()]
