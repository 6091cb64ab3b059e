"""The model after the removal of its closed heads and neurons, saved so that an interrupted recovery can resume."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from gating.distributed.collectives import broadcast, is_rank_zero, world_size
from gating.pruning.repeat import KeptUnits
from gating.run.folder.checkpoints import remove_noted
from gating.run.folder.contents import Phase
from gating.run.run import Run
from gating.sharding.copies import meta_copy, shard_copy, tensors_of
from gating.storage.atomic import replacing_file
from gating.tracking.position import log_position
from gating.training.checkpoints import checkpoint_path, note_checkpoint, read_checkpoint
from gating.training.shards import NUM_PROCESSES, check_num_processes, load_shards, save_shards

__all__ = ["save_removed", "restore_removed"]


def save_removed(run: Run) -> None:
    """Save the model after the removal: its kept heads and neurons, its weights, and the state of the run.

    Called by all ranks; those of a sharded model each save their shards.
    """
    state = run.state
    if not (is_rank_zero() or run.is_sharded):
        return
    state.log_position = log_position(run.loggers)
    path = checkpoint_path(run.paths.of_phase(Phase.REMOVED), state.search_steps)
    checkpoint = {
        "phase": path.parent.name,
        "kept": vars(KeptUnits.of(state.model)),
        "history": state.history.state_dict(),
        "summary": state.summary.state_dict(),
        "search_steps": state.search_steps,
        "log_position": state.log_position,
        NUM_PROCESSES: world_size(),
    }
    if is_rank_zero():
        note_checkpoint(path)
    if run.is_sharded:
        save_shards(Path(broadcast(str(path))), {"weights": state.model.state_dict()}, checkpoint)
        return
    with replacing_file(path) as new, new.open("wb") as file:
        torch.save({**checkpoint, "weights": state.model.state_dict()}, file)


def restore_removed(run: Run) -> bool:
    """Repeat a saved removal on the dense model, in place.

    Without one, remove checkpoints of the recovery, and return False.
    """
    path, state = run.last_checkpoint(Phase.REMOVED), run.state
    if path is None:
        if is_rank_zero():
            # Recovery starts again, too; its old checkpoints are of a model that no longer exists.
            remove_noted(run.paths.checkpoints, after=Phase.SEARCH)
        return False
    checkpoint = read_checkpoint(path)
    if run.is_sharded:
        check_num_processes(checkpoint, path)
        state.model = _load_compact_shards(state.model, path, checkpoint)
    else:
        KeptUnits(**checkpoint["kept"]).remove_others(state.model)
        state.model.load_state_dict(checkpoint["weights"])
    state.history.load_state_dict(checkpoint["history"])
    state.summary.load_state_dict(checkpoint["summary"])
    state.search_steps, state.log_position = checkpoint["search_steps"], checkpoint["log_position"]
    return True


def _load_compact_shards(model: PreTrainedModel, path: Path, checkpoint: Mapping[str, Any]) -> PreTrainedModel:
    """Return a copy of a sharded model after a saved removal, with the weights of the checkpoint."""
    compact = meta_copy(model)
    KeptUnits(**checkpoint["kept"]).remove_others(compact)
    shard_copy(compact, model, tensors_of(model), fresh=True)
    weights = compact.state_dict()
    load_shards(path, {"weights": weights})
    compact.load_state_dict(weights)
    return compact
