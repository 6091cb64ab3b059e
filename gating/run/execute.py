"""One run, stage by stage."""

from collections.abc import Collection, Mapping
from typing import Any

from gating.distributed.collectives import is_rank_zero
from gating.pruning.measure import count_heads
from gating.report.summary import Stage
from gating.run.exports import export_formats
from gating.run.folder.contents import Phase
from gating.run.folder.optimized import optimized_value
from gating.run.folder.resume import find_run
from gating.run.folder.state import is_finished
from gating.run.outcome import export, gather, report
from gating.run.phase import train_phase
from gating.run.prepare import prepare
from gating.run.recipe import write_recipe
from gating.run.run import Run
from gating.run.samples import write_dense_samples
from gating.run.settings.read import read_settings
from gating.run.stages import remove_heads, restore_removed, search, train_teacher
from gating.tasks.base import HasLoss
from gating.teachers.teacher import Teacher
from gating.tracking.verbosity import quiet_libraries
from gating.training.stored_logits import add_logits

__all__ = ["execute", "run"]


def run(composed: Mapping[str, Any], *, groups: Collection[str]) -> float | None:
    """Check the settings, load data and model, and execute the run; return the number to optimize."""
    quiet_libraries()
    settings = read_settings(composed, groups=groups)
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
    if run.objects.distillation is not None and state.teacher is None and not run.teaches_itself:
        state.teacher = Teacher(train_teacher(run), distillation=run.objects.distillation)
    if state.teacher is not None and run.stores_logits:
        with state.summary.timed("teacher_logits"):
            add_logits(run.data.module, state.teacher, device=run.device)
    if objective is None:
        with run.adapted(state.model, Phase.DENSE):
            train_phase(run, Phase.DENSE, steps=run.total_steps)
    else:
        if not restore_removed(run):
            if isinstance(run.objects.task, HasLoss) or run.settings.freezes(Phase.SEARCH):
                run.evaluate(Stage.DENSE, "dense", splits=run.data.module.splits[1:])
                write_dense_samples(run)
            with run.adapted(state.model, Phase.SEARCH):
                searched = search(run, objective)
            remove_heads(run, searched)
        if run.recovery_steps:
            with run.adapted(state.model, Phase.RECOVERY):
                train_phase(run, Phase.RECOVERY, steps=run.recovery_steps, first_step=state.search_steps)
    compact = "compact, after recovery" if run.recovery_steps else "compact, without recovery"
    run.evaluate(Stage.COMPACT, compact if objective else "dense", splits=run.data.module.splits[1:])
    state.teacher = None  # Its memory is needed now.
    if gather(run) and not is_rank_zero():
        return None
    export(run)
    write_recipe(run)
    export_formats(run)
    report(run)
    return optimized_value(run.paths.folder, run.settings.optimized_metric) if is_rank_zero() else None
