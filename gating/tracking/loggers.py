"""Loggers of a run: a CSV file, Weights & Biases, offline without an account, and others that are chosen."""

import csv
import functools
import logging
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, cast

import wandb
from matplotlib.figure import Figure
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from gating.distributed.collectives import is_rank_zero
from gating.errors import InputError
from gating.tracking.redaction import hidden_arguments, redact, redact_settings

Mode = Literal["auto", "online", "offline", "disabled"]

# Seconds for wandb to start a run, and to upload the rest at its end; its defaults are minutes.
_START_S, _END_S = 15.0, 30.0
# This file has the id of the W&B run, and the folder the CSV files, in the folder of the run.
_RUN_ID, _CSV = Path("wandb", "id-of-run"), "csv"
# Methods of loggers that are called during a run.
_METHODS = ("log_metrics", "log_hyperparams", "log_image", "log_table", "save", "finalize", "after_save_checkpoint")
# Attribute of a logger that has failed.
_FAILED = "has_failed"

_log = logging.getLogger(__name__)


def build_loggers(
    save_dir: str | Path,
    *,
    mode: Mode = "disabled",
    project: str = "head-gating",
    name: str | None = None,
    tags: list[str] | None = None,
    loggers: Mapping[str, Any] | None = None,
    group: str | None = None,
    job_type: str | None = None,
    run_config: dict[str, Any] | None = None,
    resume: bool = False,
) -> list[Logger]:
    """Create the loggers of a run; of those that fail later, the CSV file alone raises errors.

    Args:
        save_dir: The run's folder.
        mode: ``auto``, ``online``, ``offline`` or ``disabled`` (no W&B); see :func:`resolve_mode`.
        project: W&B project.
        name: Name of the W&B run; None for a random name.
        tags: Tags of the W&B run.
        loggers: Further loggers of Lightning by name, beside W&B and the CSV file; None in place of one leaves it out.
        group: Group of the W&B run; a sweep's jobs have one.
        job_type: Type of the W&B run, such as ``dense`` or ``search``.
        run_config: Configuration to record, as plain values.
        resume: Whether to go on with the W&B run of this folder.

    Raises:
        InputError: The mode is ``online`` and no account is configured.
    """
    folder, config = Path(save_dir), redact_settings(run_config or {})
    # wandb warns about a missing folder.
    folder.mkdir(parents=True, exist_ok=True)
    options = {"project": project, "name": name, "tags": tags, "group": group, "job_type": job_type}
    if resume and (folder / _RUN_ID).is_file():
        options["id"] = (folder / _RUN_ID).read_text(encoding="utf-8").strip()
    wandb_logger = _start_wandb(folder, resolve_mode(mode), {**redact_settings(options), "config": config})
    others: list[Logger] = [logger for logger in (loggers or {}).values() if logger is not None]
    for logger in others:
        with hidden_arguments():
            logger.log_hyperparams(config)
    chosen: list[Logger] = [*([wandb_logger] if wandb_logger else []), *others]
    for logger in chosen:
        for method in _METHODS:
            if hasattr(logger, method):
                setattr(logger, method, _tolerant(logger, getattr(logger, method)))
    last = max(_csv_files(folder), default=None)
    return [*chosen, CSVLogger(folder, name=_CSV, version="" if last is None else f"resumed-{last + 1}")]


def resolve_mode(mode: Mode) -> Mode:
    """Return the W&B mode; ``auto`` becomes ``WANDB_MODE`` or, without it, online if an account is configured."""
    asked = (os.environ.get("WANDB_MODE") or None) if mode == "auto" else mode
    if asked not in (None, "online"):
        return cast("Mode", asked)
    # Without a request or a prompt; with WANDB_MODE=offline, wandb would not look for a key or an identity token.
    wandb.setup(wandb.Settings(silent=True, mode="online"))
    has_account = wandb.login(prompt=False, verify=False)
    if asked == "online" and not has_account:
        raise InputError("W&B online needs an account: run `wandb login` first, or pass logger.mode=offline.")
    return "online" if has_account else "offline"


def _start_wandb(folder: Path, mode: Mode, options: Mapping[str, Any]) -> WandbLogger | None:
    """Start a W&B run, offline if W&B cannot be used online; None if it cannot be used at all."""
    if mode == "disabled":
        return None
    try:
        wandb.setup(wandb.Settings(silent=True))
        settings = wandb.Settings(silent=True, console="off", init_timeout=_START_S, finish_timeout=_END_S)
        logger = WandbLogger(mode=mode, settings=settings, save_dir=folder, **options)
        if is_rank_zero():
            # wandb records sys.argv.
            with hidden_arguments():
                run_id = logger.experiment.id
            (folder / _RUN_ID).write_text(run_id, encoding="utf-8")
        return logger
    except Exception as error:
        instead = "without it" if mode == "offline" else "offline; `wandb sync` uploads it later"
        _log.warning(f"W&B cannot be used {mode} ({_reason(error)}). The run continues {instead}.")
    return None if mode == "offline" else _start_wandb(folder, "offline", options)


def _tolerant(logger: Logger, method: Callable[..., None]) -> Callable[..., None]:
    """Turn the first error of a logger into a warning, and ignore later calls: a server must not end a run of hours."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> None:
        if hasattr(logger, _FAILED):
            return
        try:
            method(*args, **kwargs)
        except Exception as error:
            setattr(logger, _FAILED, True)
            _log.warning(f"{type(logger).__name__} has failed ({_reason(error)}). The run continues without it.")

    return call


class SizeLogger(Logger):
    """A logger of one of several sizes: its metrics are in the log of the run, with the size before their names."""

    def __init__(self, logger: Logger, size: str) -> None:
        """Args: ``logger`` is that of the run, ``size`` the name of the size."""
        super().__init__()
        self._logger, self._size = logger, size

    @property
    def name(self) -> str | None:
        """Name of the logger."""
        return self._logger.name

    @property
    def version(self) -> int | str | None:
        """Version of the logger."""
        return self._logger.version

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Leave the settings to the run."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics of the size."""
        named = {name if name == "step" else f"{self._size}/{name}": value for name, value in metrics.items()}
        self._logger.log_metrics(named, step)

    def save(self) -> None:
        """Save what was logged."""
        self._logger.save()


def log_outcome(loggers: list[Logger], numbers: dict[str, float]) -> None:
    """Log the outcome of a run: in the summary of W&B, in TensorBoard beside the run's settings."""
    sizes = ("num_heads", "num_neurons", "num_parameters", "macs")
    names = {"speedup", *sizes, *(f"{name}_before" for name in sizes)}
    renamed = {f"compact/{name}" if name in names else name: x for name, x in numbers.items()}
    # The validation metrics of the compact model would be another point in the curves of the training.
    apart = {name: x for name, x in renamed.items() if not name.startswith("val/")}
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _tolerant(logger, logger.experiment.summary.update)(renamed)
        elif isinstance(logger, TensorBoardLogger):
            _tolerant(logger, logger.log_hyperparams)(logger.hparams, metrics=apart)
            logger.save()
        elif not (isinstance(logger, CSVLogger) and logger.name == _CSV):
            logger.log_metrics(apart)


def log_samples(loggers: list[Logger], samples: list[dict[str, str]]) -> None:
    """Log text generated by the finished model: to W&B as a table, to TensorBoard as text."""
    for logger in loggers if samples else ():
        if isinstance(logger, WandbLogger):
            rows = [list(sample.values()) for sample in samples]
            logger.log_table("compact/samples", columns=list(samples[0]), data=rows)
        elif isinstance(logger, TensorBoardLogger):
            for number, sample in enumerate(samples):
                lines = "\n".join(f"- **{label}**: {text}" for label, text in sample.items())
                _tolerant(logger, logger.experiment.add_text)("compact/samples", lines, global_step=number)
            logger.save()


def log_figure(loggers: list[Logger], name: str, figure: Figure, *, step: int) -> None:
    """Log a figure as an image to W&B and TensorBoard."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [figure], step=step)
        elif isinstance(logger, TensorBoardLogger):
            _tolerant(logger, logger.experiment.add_figure)(name, figure, global_step=step)
            logger.save()


def close_wandb(*, failed: bool) -> list[Path]:
    """Finish the W&B run and return its folders, one a process; else the next job of a sweep would log to it."""
    run = wandb.run
    if run is None:
        return []
    folder, run_id = Path(run.dir).parent, run.id
    try:
        run.finish(exit_code=1 if failed else 0)
    except Exception as error:
        _log.warning(f"W&B did not finish ({_reason(error)}); its files are in {folder}.")
        # Without its service, no other run could start in this process.
        with suppress(Exception):
            wandb.teardown()
        wandb.run = None
    # Their names have the time.
    return sorted(folder.parent.glob(f"*run-*-{run_id}*"), key=lambda path: path.name.removeprefix("offline-"))


def _reason(error: Exception) -> str:
    return redact(" ".join(str(error).split())) or type(error).__name__


def read_log(folder: Path) -> list[dict[str, float]]:
    """Return the values of a run's CSV files, a table for each step; where a resumed run repeats steps, the last."""
    steps: dict[float, dict[str, float]] = {}
    for _, path in sorted(_csv_files(folder).items()):
        with path.open(encoding="utf-8", newline="") as file:
            # A full disk may have cut off the last row.
            for row in csv.DictReader(line for line in file if line.endswith("\n")):
                values = {name: float(value) for name, value in row.items() if value}
                steps.setdefault(values["step"], {}).update(values)
    return [steps[step] for step in sorted(steps)]


def _csv_files(folder: Path) -> dict[int, Path]:
    """Return the CSV files of the processes of a run by their number: Lightning would begin an existing one again."""
    paths = (folder / _CSV).glob(f"**/{ExperimentWriter.NAME_METRICS_FILE}")
    numbers = {path: re.fullmatch(r"csv|resumed-(\d+)", path.parent.name) for path in paths}
    return {int(found[1] or 0): path for path, found in numbers.items() if found}
