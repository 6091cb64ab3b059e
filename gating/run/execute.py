"""One run: prepared, its four phases, and its end."""

from gating.distributed.collectives import is_rank_zero
from gating.pruning.measure import count_heads
from gating.report.summary import Stage
from gating.run.build import naming_settings
from gating.run.folder import Phase, RunFolder
from gating.run.outcome import export, gather, report
from gating.run.phases import recover, remove, search, teach
from gating.run.prepare import prepare
from gating.run.result import Result
from gating.run.run import Run
from gating.run.settings import Settings
from gating.tracking.verbosity import quiet_libraries

__all__ = ["execute"]


def execute(settings: Settings, folder: RunFolder) -> Result | None:
    """Execute a run in its folder, which holds the lock; one that was interrupted goes on.

    Returns:
        The result on rank 0; None on others.

    Raises:
        InputError: The settings do not fit the data, the model or the machine.
    """
    quiet_libraries()
    with naming_settings(settings.model_dump()):
        run = prepare(settings, folder)
        if is_rank_zero():
            title, heads = run.objects.source.title, count_heads(run.state.model)
            print(f"{title}: {heads} heads, {run.total_steps} steps in {folder.path}")
        for phase in (teach, search, remove, recover):
            phase(run)
        finish(run)
    return Result.read(folder.path) if is_rank_zero() else None


def finish(run: Run) -> None:
    """Evaluate the model, save it, and write its exports and the report."""
    compact = "compact, after recovery" if run.recovery_steps else "compact, without recovery"
    title = compact if run.objects.objective else "dense"
    run.evaluate(Stage.COMPACT, title, splits=run.data.module.splits[1:])
    run.state.teacher = None  # Its memory is needed now.
    if gather(run) and not is_rank_zero():
        return
    export(run)
    if run.settings.freezes(Phase.SEARCH):
        from gating.run.recipe import write_recipe

        write_recipe(run)
    if run.settings.exports:
        from gating.run.exports import export_formats

        export_formats(run)
    report(run)
