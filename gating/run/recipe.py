"""The recipe of a run on frozen weights: its compact model as kilobytes beside the base model."""

from gating.compact.recipe_save import save_recipe
from gating.distributed.collectives import is_rank_zero
from gating.errors import explain
from gating.models.adapters import NoAdapters
from gating.models.hub import PACKAGE, locate
from gating.models.sources import Pretrained
from gating.run.folder import Phase
from gating.run.frozen import trains_weights
from gating.run.run import Run

__all__ = ["write_recipe"]


def write_recipe(run: Run) -> None:
    """Write the recipe of a run whose weights were never trained, on rank 0.

    Where none can be made, the reason is printed: the compact model is saved.
    """
    if not is_rank_zero() or not run.settings.freezes(Phase.SEARCH):
        return
    if not run.settings.freezes(Phase.RECOVERY) and run.recovery_steps:
        return  # A recovery that trains the weights was asked for.
    place = run.folder.recipe
    if (reason := _reason_against(run)) is None:
        try:
            with run.state.summary.timed("recipe"):
                _save(run)
        except Exception as error:  # Hours of search are not lost for it.
            reason = explain(error).rstrip(".")
    if reason is not None:
        print(f"No recipe is written beside the compact model: {reason}.")
        return
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) / 1000
    print(f"The recipe, {size:,.0f} kB from which gating.load_compact makes the compact model, is in {place}")


def _reason_against(run: Run) -> str | None:
    """Return why a run can have no recipe; None if it may have one."""
    source = run.objects.source
    if run.is_sharded:
        return "the model is in parts"
    if not isinstance(run.objects.adapters, NoAdapters) or trains_weights(run.settings, run.objects, Phase.SEARCH):
        return "adapters were trained, which are merged into the weights"
    if not isinstance(source, Pretrained) or source.name.startswith(PACKAGE):
        return f"{source.title} is no folder and no model on the hub"
    return None


def _save(run: Run) -> None:
    source, state = run.objects.source, run.state
    assert isinstance(source, Pretrained)
    save_recipe(
        state.model,
        run.folder.recipe,
        base=locate(source.name, revision=source.revision),
        revision=source.revision,
        folded=state.history.folded,
        overwrite=True,
    )
