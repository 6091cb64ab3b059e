"""Fine-tune a transformer with a gate on every attention head, remove the closed ones, recover, export.

    python train.py --help

`run` below checks and loads everything; `execute` has the stages of a run.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from gating.errors import missing_extra

if problem := missing_extra("head-gating train"):
    sys.exit(f"error: {problem}")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from gating.distributed.collectives import is_rank_zero
from gating.pruning.measure import count_heads
from gating.report.summary import Stage
from gating.run.command import compose_errors, faults_of_run, prepare_arguments
from gating.run.ending import handling_errors
from gating.run.folder.contents import Phase
from gating.run.folder.optimized import optimized_value
from gating.run.folder.resume import find_run
from gating.run.folder.state import is_finished
from gating.run.outcome import export, gather, report
from gating.run.phase import train_phase
from gating.run.prepare import prepare
from gating.run.removed import restore_removed
from gating.run.run import Run
from gating.run.settings.names import naming_settings
from gating.run.settings.read import read_settings
from gating.run.settings.recall import with_output_dir, with_recalled
from gating.run.stages import remove_heads, search, train_teacher
from gating.run.sweep.dense_first import register_sweeper
from gating.run.sweep.jobs import recording_job, starts_in_later_job
from gating.run.sweep.naming import with_job_names
from gating.tracking.redaction import redact_file
from gating.tracking.verbosity import quiet_libraries

CONF = Path(__file__).resolve().parent / "conf"
GROUPS = {folder.name for folder in CONF.iterdir() if folder.is_dir()}

register_sweeper()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Run one configuration, and return the number to optimize; None for a failed job of a sweep."""
    hydra_cfg = HydraConfig.get()
    overrides = hydra_cfg.overrides.task
    if hydra_cfg.mode != RunMode.MULTIRUN:
        return guarded_run(cfg, overrides)
    job, sweep, folder = int(hydra_cfg.job.num), Path(hydra_cfg.sweep.dir), hydra_cfg.runtime.output_dir
    if starts_in_later_job(job):
        return None
    # Processes for more devices run this command again, at another time of day.
    sys.argv.append(f"hydra.sweep.dir='{sweep.absolute()}'")
    # Hydra's own record of the command.
    redact_file(sweep / "multirun.yaml")
    with recording_job(sweep, Path(folder), number=job, overrides=overrides):
        return guarded_run(with_job_names(with_output_dir(cfg, folder), sweep=sweep, overrides=overrides), overrides)
    return None


def guarded_run(cfg: DictConfig, overrides: Sequence[str] | None = None) -> float | None:
    """Run, with a message and an exit code after errors and signals; return the number to optimize.

    Args:
        cfg: The configuration; ``resume=DIR`` takes other settings from the run in DIR.
        overrides: Overrides of the command line; None outside of a command.
    """
    with faults_of_run(), handling_errors():
        composed = cfg if overrides is None else with_recalled(cfg, overrides, conf=CONF)
        with naming_settings(composed, conf=CONF):
            return run(composed)


def run(cfg: DictConfig) -> float | None:
    """Check the settings, load data and model, and execute the run; return the number to optimize."""
    quiet_libraries()
    settings = read_settings(cfg, groups=GROUPS)
    resumed = find_run(settings.values, has_own_folder=settings.has_own_folder)
    if resumed is not None:
        if is_finished(resumed):
            print(f"The run in {resumed} is finished; there is nothing to resume.")
            return optimized_value(resumed, settings.optimized_metric)
        settings = settings.in_folder(resumed)
    return execute(prepare(settings, resumes=resumed is not None))


def execute(run: Run) -> float | None:
    """Search for heads, remove the others, recover and export; return the number to optimize on rank 0.

    Each phase resumes from its last checkpoint after an interruption.
    """
    state, objective = run.state, run.objects.objective
    if is_rank_zero():
        title, heads = run.objects.source.title, count_heads(state.model)
        print(f"{title}: {heads} heads, {run.total_steps} steps in {run.paths.folder}")
    if run.objects.distillation is not None and state.teacher is None:
        state.teacher = train_teacher(run)
    if objective is None:
        with run.adapted(state.model):
            train_phase(run, Phase.DENSE, steps=run.total_steps)
    else:
        if not restore_removed(run):
            with run.adapted(state.model):
                gates = search(run, objective)
            remove_heads(run, objective, gates)
        if run.recovery_steps:
            with run.adapted(state.model):
                train_phase(run, Phase.RECOVERY, steps=run.recovery_steps, first_step=state.search_steps)
    compact = "compact, after recovery" if run.recovery_steps else "compact, without recovery"
    run.evaluate(Stage.COMPACT, compact if objective else "dense", splits=run.data.module.splits[1:])
    state.teacher = None  # Its memory is needed now.
    if gather(run) and not is_rank_zero():
        return None
    export(run)
    report(run)
    return optimized_value(run.paths.folder, run.settings.optimized_metric) if is_rank_zero() else None


def command_line() -> None:
    """Run the command of ``sys.argv``; settings that Hydra refuses end in one sentence."""
    prepare_arguments(CONF)
    with compose_errors(CONF):
        main()


if __name__ == "__main__":
    command_line()
