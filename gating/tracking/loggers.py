"""Loggers of a run: a CSV file, Weights & Biases, offline without an account, and others that are chosen."""

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import wandb
from pytorch_lightning.loggers import Logger

from gating.distributed.collectives import is_rank_zero
from gating.errors import InputError, shorten
from gating.tracking.contents import CSV
from gating.tracking.csv_log import CsvLogger
from gating.tracking.reachability import why_unreachable
from gating.tracking.redaction import hidden_arguments, redact, redact_settings
from gating.tracking.tensorboard_log import TensorBoardLog
from gating.tracking.wandb_logger import TolerantWandbLogger
from gating.tracking.wandb_parts import forget_run, parts_of, remember_run, run_in

Mode = Literal["auto", "online", "offline", "disabled"]

__all__ = ["build_loggers", "check_loggers", "close_wandb", "log_outcome", "log_samples", "resolve_mode"]

# Modes by the values of WANDB_MODE; the last two are those of earlier versions of wandb.
_MODES: Mapping[str, Mode]
_MODES = {"online": "online", "offline": "offline", "disabled": "disabled", "dryrun": "offline", "run": "online"}
# Modes that are tried, and what is done where W&B cannot be used in one.
_ATTEMPTS: dict[Mode, tuple[Mode, ...]] = {"online": ("online", "offline"), "offline": ("offline",)}
_FALLBACKS: dict[Mode, str] = {
    "online": "The run continues offline; `wandb sync` uploads it later.",
    "offline": "The run continues without it; the CSV file has its numbers.",
}
# Seconds for wandb to start a run, and to upload the rest at its end; its defaults are minutes.
_TIMEOUT_S = 30.0

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
    """Create the loggers of a run.

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
        resume: Whether to resume the W&B run and the CSV file in this folder.

    Raises:
        InputError: The mode is ``online`` and no account is configured.
    """
    # wandb warns about a missing folder.
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    others = _enter_run(loggers, Path(save_dir), settings=redact_settings(run_config or {}))
    mode = resolve_mode(mode)
    options: dict[str, Any] = redact_settings(
        {"project": project, "name": name, "tags": tags and list(tags), "group": group, "job_type": job_type}
        | {"config": run_config}
    )
    wandb_id = run_in(Path(save_dir)) if resume else None
    earlier = parts_of(Path(save_dir), wandb_id) if wandb_id else []
    if wandb_id is not None:
        # Offline this adds a second folder of the same run.
        options |= {"id": wandb_id, "resume": "allow"}
    wandb_logger = _start_wandb(mode, save_dir=save_dir, **options)
    if is_rank_zero() and wandb_logger is not None:
        wandb_logger.enter(earlier)
        remember_run(Path(save_dir), wandb_logger.experiment.id)
    elif is_rank_zero() and not resume:
        forget_run(Path(save_dir))
    return [*([wandb_logger] if wandb_logger else []), CsvLogger(save_dir, name=CSV, version=""), *others]


def check_loggers(loggers: object) -> None:
    """Check that each of the further loggers is one.

    Raises:
        InputError: An object is not a logger of Lightning.
    """
    for name, logger in loggers.items() if isinstance(loggers, Mapping) else ():
        if logger is not None and not isinstance(logger, Logger):
            raise InputError(
                f"logger.loggers.{name} is a {type(logger).__name__}: give it the _target_ of a Logger of Lightning, "
                "such as pytorch_lightning.loggers.MLFlowLogger."
            )


def _enter_run(loggers: Mapping[str, Any] | None, folder: Path, *, settings: dict[str, Any]) -> list[Logger]:
    """Return the further loggers, with the folder and the settings of the run."""
    chosen: list[Logger] = [logger for logger in (loggers or {}).values() if logger is not None]
    for logger in chosen:
        if isinstance(logger, TensorBoardLog):
            logger.enter(folder)
        with hidden_arguments():
            logger.log_hyperparams(settings)
    return chosen


def _start_wandb(mode: Mode, **options: Any) -> TolerantWandbLogger | None:
    """Start a W&B run, offline if W&B cannot be used online; None if it cannot be used at all."""
    for attempt in _ATTEMPTS.get(mode, ()):
        try:
            settings = wandb.Settings(silent=True, console="off", init_timeout=_TIMEOUT_S, finish_timeout=_TIMEOUT_S)
            logger = TolerantWandbLogger(mode=attempt, settings=settings, **options)
            if not is_rank_zero():
                return logger
            reason = _why_unreachable() if attempt == "online" else None
            if reason is None:
                _ = logger.experiment
                return logger
        except Exception as error:
            reason = str(error).strip() or type(error).__name__
        _log.warning(f"W&B cannot be used {attempt} ({redact(' '.join(reason.split()))}). {_FALLBACKS[attempt]}")
    return None


def resolve_mode(mode: Mode) -> Mode:
    """Return the W&B mode; ``auto`` becomes ``WANDB_MODE`` or, without it, online if an account is configured.

    Raises:
        InputError: The mode is ``online`` and no account is configured, or W&B cannot read its own settings.
    """
    if mode != "disabled":
        _check_environment()
    if mode == "auto":
        mode = _MODES.get(os.environ.get("WANDB_MODE", "")) or ("online" if _has_account() else "offline")
    if mode == "online" and not _has_account():
        raise InputError("W&B online needs an account: run `wandb login` first, or pass logger.mode=offline.")
    return mode


def log_outcome(loggers: list[Logger], numbers: dict[str, float], compact_folder: Path) -> None:
    """Log the outcome of a run.

    W&B gets it in its summary and, online, the compact model as an artifact; TensorBoard beside the run's settings.
    """
    sizes = ("num_heads", "num_neurons", "num_parameters", "macs")
    names = {"speedup", *sizes, *(f"{name}_before" for name in sizes)}
    renamed = {f"compact/{name}" if name in names else name: x for name, x in numbers.items()}
    # The validation metrics of the compact model would be another point in the curves of the training.
    apart = {name: x for name, x in renamed.items() if not name.startswith("val/")}
    for logger in loggers:
        if isinstance(logger, TolerantWandbLogger):
            logger.log_outcome(renamed, compact_folder)
        elif isinstance(logger, TensorBoardLog):
            logger.log_outcome(apart)
        elif not isinstance(logger, CsvLogger):
            logger.log_metrics(apart)


def log_samples(loggers: list[Logger], samples: list[dict[str, str]]) -> None:
    """Log text generated by the finished model: to W&B as a table, to TensorBoard as text."""
    rows = [list(sample.values()) for sample in samples]
    for logger in loggers:
        if isinstance(logger, TolerantWandbLogger) and rows:
            logger.log_table("compact/samples", columns=list(samples[0]), data=rows)
        elif isinstance(logger, TensorBoardLog):
            logger.log_texts("compact/samples", samples)


def close_wandb(*, failed: bool) -> list[Path]:
    """Finish the W&B run, if there is one, and return the folders of its parts, the earliest first.

    Lightning leaves runs open: the next job of a sweep would log to this one.
    """
    run = wandb.run
    if run is None:
        return []
    folder, run_id = Path(run.dir).parent, run.id
    try:
        run.finish(exit_code=1 if failed else 0)
    except Exception as error:
        _log.warning(f"W&B did not finish ({str(error).strip() or type(error).__name__}); its files are in {folder}.")
        # Without its service, no other run could start in this process.
        with suppress(Exception):
            wandb.teardown()
        wandb.run = None
    return parts_of(folder.parent.parent, run_id) or [folder]


def _check_environment() -> None:
    """Let wandb read and validate its settings, in the environment and in its own files."""
    key = os.environ.get("WANDB_API_KEY")
    if key is not None:
        # A key read from a file ends with a newline.
        os.environ["WANDB_API_KEY"] = key.strip()
    token = os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
    if token and not Path(token).is_file():
        # It would crash wandb's service.
        raise InputError(f"WANDB_IDENTITY_TOKEN_FILE={token}: there is no such file. Correct it, or leave it out.")
    try:
        wandb.setup(wandb.Settings(silent=True))
    except Exception as error:
        reason = redact(" ".join(str(error).split())) or type(error).__name__
        raise InputError(
            f"W&B cannot read its settings ({shorten(reason, most=200)}). Correct the variables WANDB_..., or do "
            "without: logger=csv."
        ) from error


def _has_account() -> bool:
    """Return whether a key or an identity token is configured, without a request or a prompt."""
    # With WANDB_MODE=offline, wandb would not look for a key.
    wandb.setup(wandb.Settings(silent=True, mode="online"))
    try:
        return wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError:
        return True  # wandb reports the problem when the run starts.


def _why_unreachable() -> str | None:
    """Return the reason why the server of the environment and wandb's own files cannot be used, or None."""
    settings = wandb.setup().settings
    return why_unreachable(str(settings.base_url), None if settings.identity_token_file else settings.api_key)
