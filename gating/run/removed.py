"""The model without its closed heads, on the disk before recovery begins, for a run that is interrupted there."""

import torch

from gating.discovery.find import find_attention_blocks
from gating.distributed.collectives import is_rank_zero
from gating.pruning.prune import prune_heads
from gating.run.folder.contents import Phase
from gating.run.folder.earlier_run import forget_phases
from gating.run.run import Run
from gating.storage.atomic import replacing_file
from gating.tracking.csv_log import num_rows
from gating.training.checkpoints import checkpoint_path, read_checkpoint

__all__ = ["keep_removed", "restore_removed"]


def keep_removed(run: Run) -> None:
    """Write which heads the model has left, its weights, and what the run has found out so far."""
    run.num_rows = num_rows(run.loggers)
    kept = {block.name: list(block.head_ids) for block in find_attention_blocks(run.model)}
    path = checkpoint_path(run.checkpoints / Phase.REMOVED, run.search_steps)
    state = {
        "phase": path.parent.name,
        "kept_heads": kept,
        "weights": run.model.state_dict(),
        "history": run.history.state_dict(),
        "summary": run.summary.state_dict(),
        "search_steps": run.search_steps,
        "num_rows": run.num_rows,
    }
    with replacing_file(path) as new, new.open("wb") as file:
        torch.save(state, file)


def restore_removed(run: Run) -> bool:
    """Remove the same heads again from the model, which still has all of them, in place; False if that is to come."""
    path = run.last_checkpoint(Phase.REMOVED)
    if path is None:
        if is_rank_zero():
            # Recovery comes once more, too: with those of its checkpoints it would end as if it had been left out.
            forget_phases(run.checkpoints, after=Phase.SEARCH)
        return False
    state = read_checkpoint(path)
    kept = state["kept_heads"]
    blocks = find_attention_blocks(run.model)
    prune_heads(run.model, {block.name: set(block.head_ids) - set(kept[block.name]) for block in blocks})
    run.model.load_state_dict(state["weights"])
    run.history.load_state_dict(state["history"])
    run.summary.load_state_dict(state["summary"])
    run.search_steps, run.num_rows = state["search_steps"], state["num_rows"]
    return True
