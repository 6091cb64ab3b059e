"""Runs on frozen weights: whether anything is left to train, and the steps of their search."""

from gating.distributed.collectives import is_rank_zero
from gating.errors import InputError
from gating.models.adapters import NoAdapters
from gating.models.sources import NewModel
from gating.run.build import RunObjects
from gating.run.folder import Phase
from gating.run.settings import Settings

__all__ = ["check_frozen", "planned_search_steps", "teaches_itself", "trains_weights"]


def trains_weights(settings: Settings, objects: RunObjects, phase: Phase) -> bool:
    """Return whether a phase trains weights of the model, or adapters of them."""
    return not settings.freezes(phase) or not isinstance(objects.adapters, NoAdapters)


def teaches_itself(settings: Settings, objects: RunObjects) -> bool:
    """Return whether the gates learn from the model with all of them open: its weights are frozen in the search."""
    is_alone = objects.distillation is not None and objects.teacher is None
    return is_alone and objects.objective is not None and settings.freezes(Phase.SEARCH)


def check_frozen(settings: Settings, objects: RunObjects, *, num_processes: int) -> None:
    """Raise ``InputError`` for frozen weights that are random, leave nothing to train, or have logits to store."""
    phase = Phase.DENSE if objects.objective is None else Phase.SEARCH
    _check_dtype(settings, objects, phase)
    if not settings.freezes(phase):
        return
    if isinstance(objects.source, NewModel):
        raise InputError(
            f"optimizer.freeze keeps the weights as they are, and those of a {objects.source.title} are random: leave "
            "it out, or use a pretrained model."
        )
    if teaches_itself(settings, objects) and objects.store_logits:
        raise InputError(
            "distillation.store=true stores the logits of a second model. With optimizer.freeze, the model itself is "
            "the teacher: leave it out, or give distillation.teacher=FOLDER_OR_HUB_NAME."
        )
    if trains_weights(settings, objects, phase):
        return
    if objects.objective is None:
        raise InputError(
            "optimizer.freeze=true with objective=none trains nothing: leave it out, or give adapters=lora. A run with "
            "gates on frozen weights has the metrics of the dense model in its report."
        )
    from gating.objectives import IterativePruning

    if not isinstance(objects.objective, IterativePruning):
        return
    ranking = objects.objective.ranking
    if not getattr(ranking, "needs_gradients", False):
        raise InputError(
            f"The ranking {type(ranking).__name__} needs no training, and optimizer.freeze leaves nothing else to "
            "train: choose objective=fisher or objective=importance, or leave optimizer.freeze out."
        )
    if num_processes > 1:
        raise InputError(
            "Rounds train no gates, and optimizer.freeze no weights: several processes have no gradients to exchange. "
            "Give trainer.devices=1 or objective=deterministic."
        )


def planned_search_steps(settings: Settings, objects: RunObjects, *, total_steps: int) -> int:
    """Return the number of optimizer steps before the removal; all where the recovery has nothing to train."""
    if objects.objective is None:
        return 0
    if not trains_weights(settings, objects, Phase.RECOVERY):
        if settings.recovery and is_rank_zero():
            print(
                f"optimizer.freeze=true leaves nothing to train after the removal, so all {total_steps} steps are the "
                "search. optimizer.freeze=search trains the weights in a recovery, adapters=lora adapters."
            )
        return total_steps
    return max(1, round((1 - settings.recovery) * total_steps))


def _check_dtype(settings: Settings, objects: RunObjects, phase: Phase) -> None:
    """Raise ``InputError`` for weights in half precision that are trained."""
    dtype = getattr(objects.source, "dtype", "float32")
    if dtype == "float32" or not isinstance(objects.adapters, NoAdapters):
        return
    if not (settings.freezes(phase) and (settings.freezes(Phase.RECOVERY) or not settings.recovery)):
        raise InputError(
            f"model.dtype={dtype} loses the small steps of a training. Freeze the weights with optimizer.freeze=true, "
            "train adapters=lora, or leave it out; trainer.precision=bf16-mixed computes in half precision."
        )
