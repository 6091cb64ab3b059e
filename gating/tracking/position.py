"""Position in the logs of a run at a checkpoint, to which a resumed run returns."""

from collections.abc import Sequence

from pytorch_lightning.loggers import Logger

from gating.distributed.collectives import is_rank_zero
from gating.tracking.csv_log import keep_rows, num_rows
from gating.tracking.tensorboard_log import TensorBoardLog
from gating.tracking.wandb_logger import TolerantWandbLogger

__all__ = ["LogPosition", "log_position", "return_to"]

# Rows of the CSV file and of the W&B run by these keys, and bytes of each event file of TensorBoard by its name.
LogPosition = dict[str, int]

_ROWS, _WANDB_ROWS = "rows", "wandb_rows"


def log_position(loggers: Sequence[Logger]) -> LogPosition:
    """Return the position in the logs that this process writes."""
    sizes = [logger.sizes() for logger in _event_loggers(loggers)]
    rows = [logger.num_rows() for logger in _wandb_loggers(loggers)]
    wandb_rows = {} if not rows or rows[0] is None else {_WANDB_ROWS: rows[0]}
    return {_ROWS: num_rows(loggers), **wandb_rows, **{name: size for files in sizes for name, size in files.items()}}


def return_to(loggers: Sequence[Logger], position: LogPosition) -> None:
    """Remove everything that was logged after a position; a resumed run logs it again."""
    keep_rows(loggers, position.get(_ROWS, 0))
    for logger in _event_loggers(loggers):
        logger.cut_off(position)
    for wandb_logger in _wandb_loggers(loggers):
        # A process without W&B may have written the checkpoint: then nothing is known about the rows before it.
        wandb_logger.return_to(position.get(_WANDB_ROWS) if position else 0)


def _event_loggers(loggers: Sequence[Logger]) -> list[TensorBoardLog]:
    return [logger for logger in loggers if isinstance(logger, TensorBoardLog) and is_rank_zero()]


def _wandb_loggers(loggers: Sequence[Logger]) -> list[TolerantWandbLogger]:
    return [logger for logger in loggers if isinstance(logger, TolerantWandbLogger) and is_rank_zero()]
