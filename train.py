"""Fine-tune a transformer with a gate on every attention head, remove the closed ones, recover, export.

    python train.py --help

The command composes its settings here; `execute` in gating/run/execute.py has the stages of a run. The modules of a
run import torch, which takes seconds: functions below import them once help is printed and wrong names are refused.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gating.distributed.threads import limit_spinning
from gating.errors import InputError, explain, missing_extra

if problem := missing_extra("head-gating train"):
    sys.exit(f"error: {problem}")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from gating.run.command import compose_errors, faults_of_run, prepare_arguments
from gating.run.settings.misspelled import check_added
from gating.run.sweep.plugins import register_sweeper

CONF = Path(__file__).resolve().parent / "conf"
GROUPS = {folder.name for folder in CONF.iterdir() if folder.is_dir()}

register_sweeper()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Run one configuration, and return the number to optimize; None for a failed job of a sweep."""
    hydra_cfg = HydraConfig.get()
    overrides = hydra_cfg.overrides.task
    if hydra_cfg.mode == RunMode.MULTIRUN:
        return run_job(cfg, overrides, job=int(hydra_cfg.job.num), sweep=Path(hydra_cfg.sweep.dir))
    try:
        check_added(cfg, overrides)
    except InputError as error:
        sys.exit(f"error: {explain(error)}")
    return guarded_run(cfg, overrides)


def run_job(cfg: DictConfig, overrides: Sequence[str], *, job: int, sweep: Path) -> float | None:
    """Run a job of a sweep, and record its failure.

    Args:
        cfg: The configuration.
        overrides: Overrides of the command line and of the job.
        job: Number of the job.
        sweep: Folder of the sweep.
    """
    from gating.run.settings.settings import as_plain
    from gating.run.sweep.jobs import recording_job, starts_in_later_job, with_job_names
    from gating.tracking.redaction import redact_file

    if starts_in_later_job(job):
        return None
    folder = HydraConfig.get().runtime.output_dir
    # Processes for more devices run this command again, at another time of day.
    sys.argv.append(f"hydra.sweep.dir='{sweep.absolute()}'")
    # Hydra's own record of the command.
    redact_file(sweep / "multirun.yaml")
    with recording_job(sweep, Path(folder), number=job, overrides=overrides):
        settings = {**as_plain(cfg), "output_dir": folder}
        return guarded_run(with_job_names(settings, sweep=sweep, overrides=overrides), overrides)
    return None


def guarded_run(cfg: Mapping[str, Any], overrides: Sequence[str] | None = None) -> float | None:
    """Run, with a message and an exit code after errors and signals; return the number to optimize.

    Args:
        cfg: The configuration, with its interpolations; ``resume=DIR`` takes other settings from the run in DIR.
        overrides: Overrides of the command line; None outside of a command.
    """
    from gating.run.ending import handling_errors
    from gating.run.settings.options import naming_settings
    from gating.run.settings.recall import with_recalled
    from gating.run.settings.settings import as_plain

    with faults_of_run(), handling_errors():
        composed = as_plain(cfg)
        if overrides is not None:
            composed = with_recalled(composed, overrides, conf=CONF)
        with naming_settings(composed, conf=CONF):
            return run(composed)


def run(cfg: Mapping[str, Any]) -> float | None:
    """Execute the run of a configuration; return the number to optimize."""
    from gating.run import execute

    return execute.run(cfg, groups=GROUPS)


def command_line() -> None:
    """Run the command of ``sys.argv``; settings that Hydra refuses end in one sentence."""
    limit_spinning()
    prepare_arguments(CONF)
    with compose_errors(CONF):
        main()


if __name__ == "__main__":
    command_line()
