"""Weights & Biases without an account, and a CSV file beside it."""

import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, cast, get_args

import wandb
from pytorch_lightning.loggers import Logger

from gating.distributed.collectives import is_rank_zero
from gating.errors import InputError, shorten
from gating.tracking.csv_log import CsvLogger
from gating.tracking.reachability import why_unreachable
from gating.tracking.redaction import redact, redact_settings
from gating.tracking.wandb_logger import TolerantWandbLogger

Mode = Literal["auto", "online", "offline", "disabled"]

__all__ = ["build_loggers", "close_wandb", "log_outcome", "log_samples", "resolve_mode"]

# Seconds that W&B may take to begin a run, and to upload what is left at its end. Else it would try for minutes.
_PATIENCE_S = 30.0

# A segment of a W&B run on the disk.
_SEGMENT = re.compile(r"(?:offline-)?run-(?P<time>\d{8}_\d{6})-(?P<id>\w+)(?:-\d+)?")

_log = logging.getLogger(__name__)


def build_loggers(
    save_dir: str | Path,
    *,
    mode: Mode = "auto",
    project: str = "head-gating",
    name: str | None = None,
    tags: list[str] | None = None,
    run_config: dict[str, Any] | None = None,
    goes_on: bool = False,
) -> list[Logger]:
    """Create the loggers of a run.

    Args:
        save_dir: The run's folder.
        mode: ``auto``, ``online``, ``offline`` or ``disabled`` (no W&B); see :func:`resolve_mode`.
        project: W&B project.
        name: Name of the W&B run; W&B makes one up when left out.
        tags: Tags of the W&B run.
        run_config: What to record as the run's configuration; plain values.
        goes_on: Whether the run was begun before in this folder: its W&B run and its CSV file go on, too.

    Raises:
        ValueError: The mode is ``online`` and no account is configured.
    """
    # W&B warns where the folder is not there yet.
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    loggers: list[Logger] = [CsvLogger(save_dir, name="csv", version="")]
    mode = resolve_mode(mode)
    # Secrets are nothing that W&B should have.
    options: dict[str, Any] = redact_settings(
        {"project": project, "name": name, "tags": tags and list(tags), "config": run_config}
    )
    wandb_id = _last_wandb_id(Path(save_dir)) if goes_on else None
    if wandb_id is not None:
        # Offline it is a second folder of the same run; `wandb sync` puts them together.
        options |= {"id": wandb_id, "resume": "allow"}
    if mode == "online":
        reachable = _begin(
            mode, "The run goes on offline; `wandb sync` uploads it later.", **options, save_dir=save_dir
        )
        if reachable is not None:
            return [reachable, *loggers]
        mode = "offline"
    if mode != "disabled":
        instead = "The run goes on without it; the CSV file has its numbers."
        local = _begin("offline", instead, **options, save_dir=save_dir)
        loggers = [*([local] if local else []), *loggers]
    return loggers


def _begin(mode: Mode, instead: str, **options: Any) -> TolerantWandbLogger | None:
    """Begin a W&B run; None, and a sentence that says what happens instead, if W&B does not take it."""
    reason = None
    try:
        logger = TolerantWandbLogger(mode=mode, settings=_settings(), **options)
        if is_rank_zero():
            reason = why_unreachable(_base_url(), _key()) if mode == "online" else None
            if reason is None:
                _ = logger.experiment
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
    if reason is None:
        return logger
    _log.warning(f"W&B cannot be used {mode} ({redact(' '.join(reason.split()))}). {instead}")
    return None


def _settings() -> wandb.Settings:
    wanted: dict[str, Any] = {"silent": True, "console": "off"}
    wanted |= {"init_timeout": _PATIENCE_S, "finish_timeout": _PATIENCE_S}
    # Older versions do not know all of them.
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in wandb.Settings.model_fields})


def resolve_mode(mode: Mode) -> Mode:
    """Say whether W&B runs online: where ``auto``, only if ``WANDB_MODE`` or a configured account asks for it.

    Raises:
        ValueError: The mode is ``online`` and no account is configured, or W&B cannot read its own settings.
    """
    if mode != "disabled":
        _check_environment()
    if mode == "auto":
        wanted = os.environ.get("WANDB_MODE", "")
        asked = {"dryrun": "offline", "run": "online"}.get(wanted, wanted)
        known = get_args(Mode)[1:]
        mode = cast(Mode, asked) if asked in known else "online" if _has_account() else "offline"
    if mode == "online" and not _has_account():
        raise InputError("W&B online needs an account: run `wandb login` first, or pass logger.mode=offline.")
    return mode


def log_outcome(loggers: list[Logger], numbers: dict[str, float], compact_folder: Path) -> None:
    """Put the outcome of a run into the W&B summary and, online, the compact model into an artifact.

    Args:
        loggers: The loggers of the run.
        numbers: What was measured, flat.
        compact_folder: The saved compact model.
    """
    names = {"num_heads", "num_heads_before", "num_parameters", "num_parameters_before", "speedup"}
    renamed = {f"compact/{name}" if name in names else name: x for name, x in numbers.items()}
    for logger in loggers:
        if isinstance(logger, TolerantWandbLogger):
            logger.log_outcome(renamed, compact_folder)


def log_samples(loggers: list[Logger], samples: list[dict[str, str]]) -> None:
    """Put what the finished model has written into W&B, as a table."""
    rows = [list(sample.values()) for sample in samples]
    for logger in loggers:
        if isinstance(logger, TolerantWandbLogger) and rows:
            logger.log_table("compact/samples", columns=list(samples[0]), data=rows)


def close_wandb(*, failed: bool) -> Path | None:
    """Finish the W&B run, if there is one, and return its folder.

    Lightning leaves runs open; the next job of a sweep would then write into this one.

    Args:
        failed: Whether to mark the run as failed.
    """
    run = wandb.run
    if run is None:
        return None
    folder = Path(run.dir).parent
    try:
        run.finish(exit_code=1 if failed else 0)
    except Exception as error:
        _log.warning(f"W&B did not finish ({str(error).strip() or type(error).__name__}); what it has is in {folder}.")
        # Its service is gone, and with it nothing else would begin in this process.
        with suppress(Exception):
            wandb.teardown()
        wandb.run = None
    return folder


def _check_environment() -> None:
    """Make W&B read its settings, in the environment and in files of its own, which it checks then."""
    key = os.environ.get("WANDB_API_KEY")
    if key is not None:
        # A file that a key was read from ends with a line.
        os.environ["WANDB_API_KEY"] = key.strip()
    token = os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
    if token and not Path(token).is_file():
        # W&B's own service would end on it.
        raise InputError(f"WANDB_IDENTITY_TOKEN_FILE={token}: there is no such file. Correct it, or leave it out.")
    try:
        wandb.setup(wandb.Settings(silent=True))
    except Exception as error:
        reason = redact(" ".join(str(error).split())) or type(error).__name__
        raise InputError(
            f"W&B cannot read its settings ({shorten(reason, most=200)}). Correct the variables WANDB_..., or do "
            "without: logger=csv."
        ) from error


def _base_url() -> str:
    """Return the server's address, from the environment and W&B's own files of settings."""
    return str(wandb.setup().settings.base_url)


def _has_account() -> bool:
    """Say whether a key or an identity token is configured, without asking the server or the user."""
    # The run's own mode goes before WANDB_MODE, in which W&B would not look.
    wandb.setup(wandb.Settings(silent=True, mode="online"))
    try:
        return wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError:
        return True  # What is wrong with it, W&B says when the run begins.


def _key() -> str | None:
    """Return the key of the account; None if it has an identity token instead."""
    settings = wandb.setup().settings
    return None if settings.identity_token_file else settings.api_key


def _last_wandb_id(save_dir: Path) -> str | None:
    """Return the id of the W&B run in a folder.

    Its segments are called offline-run-TIME-ID or run-TIME-ID, with a number behind it if there are two in a second.
    """
    names = [_SEGMENT.fullmatch(path.name) for path in (save_dir / "wandb").glob("*run-*-*")]
    segments = sorted((name["time"], name["id"]) for name in names if name)
    return segments[-1][1] if segments else None
