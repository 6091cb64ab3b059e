"""Weights & Biases without an account, and a CSV file beside it."""

import netrc
import os
from pathlib import Path
from typing import Any, Literal, cast, get_args
from urllib.parse import urlparse

import wandb
from pytorch_lightning.loggers import Logger, WandbLogger

from gating.lightning.csv_log import CsvLogger

Mode = Literal["auto", "online", "offline", "disabled"]

__all__ = ["build_loggers", "close_wandb", "log_outcome", "log_samples", "resolve_mode"]


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
    if mode != "disabled":
        settings = wandb.Settings(silent=True, console="off")
        # Offline it is a second folder of the same run; `wandb sync` puts them together.
        wandb_id = _last_wandb_id(Path(save_dir)) if goes_on else None
        logger = _WandbLogger(
            save_dir=save_dir,
            mode=mode,
            project=project,
            name=name,
            tags=tags,
            config=run_config,
            settings=settings,
            id=wandb_id,
            resume="allow" if wandb_id else None,
        )
        loggers.insert(0, logger)
    return loggers


def resolve_mode(mode: Mode) -> Mode:
    """Say whether W&B runs online: where ``auto``, only if ``WANDB_MODE`` or a configured key asks for it.

    Raises:
        ValueError: The mode is ``online`` and no account is configured.
    """
    if mode == "auto":
        wanted = os.environ.get("WANDB_MODE", "")
        asked = {"dryrun": "offline", "run": "online"}.get(wanted, wanted)
        known = get_args(Mode)[1:]
        mode = cast(Mode, asked) if asked in known else "online" if _has_key() else "offline"
    if mode == "online" and not _has_key():
        raise ValueError("W&B online needs an account: run `wandb login` first, or pass logger.mode=offline.")
    return mode


def log_outcome(loggers: list[Logger], numbers: dict[str, float], compact_folder: Path) -> None:
    """Put the outcome of a run into the W&B summary and, online, the compact model into an artifact.

    Args:
        loggers: The loggers of the run.
        numbers: What was measured, flat.
        compact_folder: The saved compact model.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            run = logger.experiment
            names = {"num_heads", "num_heads_before", "num_parameters", "num_parameters_before", "speedup"}
            run.summary.update({f"compact/{name}" if name in names else name: x for name, x in numbers.items()})
            if not run.offline:
                artifact = wandb.Artifact(f"compact-{run.id}", type="model")
                artifact.add_dir(str(compact_folder))
                run.log_artifact(artifact)


def log_samples(loggers: list[Logger], samples: list[dict[str, str]]) -> None:
    """Put what the finished model has written into W&B, as a table."""
    rows = [list(sample.values()) for sample in samples]
    for logger in loggers:
        if isinstance(logger, WandbLogger) and rows:
            logger.experiment.log({"compact/samples": wandb.Table(columns=list(samples[0]), data=rows)})


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
    run.finish(exit_code=1 if failed else 0)
    return folder


def _has_key() -> bool:
    """Say whether an account is configured, without asking the server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        host = urlparse(wandb.Settings().base_url).hostname or ""
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _last_wandb_id(save_dir: Path) -> str | None:
    """Return the id of the W&B run in a folder; its segments are called offline-run-TIME-ID or run-TIME-ID."""
    segments = sorted((save_dir / "wandb").glob("*run-*-*"), key=lambda path: path.name.removeprefix("offline-"))
    return segments[-1].name.rpartition("-")[2] if segments else None


class _WandbLogger(WandbLogger):
    """Lightning's logger without an argument that W&B has stopped to accept and warns about."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._wandb_init.pop("anonymous", None)
