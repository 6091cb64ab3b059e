"""Fine-tune a transformer with a gate on every attention head, remove the closed ones, recover, export.

    python train.py --help

Hydra composes the settings from conf/ and the command line; gating/run/execute.py has the phases of a run. The modules
of a run import torch, which takes seconds: mistakes that the settings and the folder show are told before.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from gating.distributed import limit_spinning
from gating.errors import UserError, explain

try:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig, OmegaConf

    from gating.run.folder import RunFolder, is_finished, result_of
    from gating.run.settings import read_settings
    from gating.run.sweep.plugins import register_sweeper
    from gating.tracking.redaction import redact_output
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is missing: pip install 'head-gating[train]'")

CONF = Path(__file__).resolve().parent / "conf"

register_sweeper()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Run one configuration, and return the number to optimize; None for a failed job of a sweep."""
    hydra_cfg = HydraConfig.get()
    overrides = hydra_cfg.overrides.task
    if hydra_cfg.mode == RunMode.MULTIRUN:
        return run_job(cfg, overrides, job=int(hydra_cfg.job.num), sweep=Path(hydra_cfg.sweep.dir))
    return guarded_run(cfg, overrides)


def run_job(cfg: DictConfig, overrides: Sequence[str], *, job: int, sweep: Path) -> float | None:
    """Run a job of a sweep, and record its failure.

    Args:
        cfg: The configuration.
        overrides: Overrides of the command line and of the job.
        job: Number of the job.
        sweep: Folder of the sweep.
    """
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
        settings: Any = OmegaConf.to_container(cfg)
        named = with_job_names({**settings, "output_dir": folder}, sweep=sweep, overrides=overrides)
        return guarded_run(named, overrides)
    return None


def guarded_run(cfg: Mapping[str, Any], overrides: Sequence[str] = ()) -> float | None:
    """Run, with one sentence and an exit code after errors and signals; return the number to optimize."""

    def ending(folder: RunFolder) -> AbstractContextManager[None]:
        from gating.run.ending import handling_errors

        return handling_errors(folder)

    try:
        return run(cfg, overrides, ending=ending)
    except (UserError, OSError) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        raise SystemExit(1) from error


def run(
    cfg: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    ending: Callable[[RunFolder], AbstractContextManager[Any]] = nullcontext,
) -> float | None:
    """Execute the run of a configuration; return the number to optimize.

    Args:
        cfg: The configuration; ``resume=DIR`` takes other settings from the run in DIR.
        overrides: Overrides of the command line.
        ending: What surrounds the run once it has its folder.
    """
    settings = read_settings(cfg, overrides)
    with RunFolder(
        Path(settings.output_dir),
        checkpoints=Path(settings.paths["checkpoints"]),
        resumes=settings.resume is not None,
        overwrite=settings.overwrite,
    ) as folder:
        if folder.resumes and is_finished(folder.path):
            print(f"The run in {folder.path} is finished; there is nothing to resume.")
            return result_of(folder.path, settings.optimized_metric)
        with ending(folder):
            from gating.run.execute import execute

            execute(settings, folder)
    return result_of(folder.path, settings.optimized_metric) if is_finished(folder.path) else None


def find_mistake(arguments: Sequence[str]) -> str | None:
    """Return which argument runs several jobs without ``-m``, of which Hydra would run one; None if there is none."""
    multirun = ("--multirun", "-m", "hydra.mode=MULTIRUN")
    if any(one in multirun or (one[:3] == "--m" and multirun[0].startswith(one)) for one in arguments):
        return None
    chosen = (one for one in arguments if one.startswith(("sweep=", "hparams_search=")))
    return next((f"{one} runs several jobs: add -m, as in python train.py -m {one}." for one in chosen), None)


def command_line() -> None:
    """Run the command of ``sys.argv``."""
    limit_spinning()
    redact_output()
    if problem := find_mistake(sys.argv[1:]):
        sys.exit(f"error: {problem}")
    main()


if __name__ == "__main__":
    command_line()
