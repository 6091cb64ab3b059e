"""The phases of a run: the teacher, the search, the removal, the recovery.

Each is a function of the run. It begins from the state of the one before, goes on from its own last checkpoint, and
ends with a saved state; one that has ended is loaded. So resuming a run is to call all four again. A dense run is a
search without gates.
"""

import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from gating.data.examples import model_inputs
from gating.distributed.collectives import broadcast, is_rank_zero
from gating.loader.modeling import RECORD_KEY
from gating.models.sources import ModelSource, load_sharded, make_meta_model
from gating.objectives import KeepsBudget, Objective
from gating.objectives.search import Search
from gating.pruning.finalize import finalize
from gating.pruning.plan import remove_recorded
from gating.pruning.prune_report import unproven_note
from gating.run.build import teacher_in, teaches_itself
from gating.run.data import set_measured_macs
from gating.run.folder import TEACHER, Phase
from gating.run.phase import train_phase
from gating.run.run import Run
from gating.sharding.copies import copy_sharded, gather_model, meta_copy, shard_copy, tensors_of
from gating.sharding.plan import check_same
from gating.storage.files import checkpoint_path, move_aside, replacing_folder
from gating.structure.layers import count_units
from gating.tasks.base import HasLoss
from gating.tracking.verbosity import printed_warnings
from gating.training.callbacks import log_kept_heads
from gating.training.checkpoints import load_own_state, load_shards, read_checkpoint, save_shards, write_checkpoint

# Number of training examples of the compensation.
_SOLVED = 1024


def teach(run: Run) -> None:
    """Train a dense copy of the model as long as the run, if no teacher is named; it is saved for other runs."""
    state, folder = run.state, run.folder.path / TEACHER
    if run.objects.distillation is None or teaches_itself(run.settings, run.objects):
        return
    from gating.teachers.teacher import Teacher

    if state.teacher is None:
        if run.folder.resumes and broadcast(folder.is_dir()):
            teacher = load_teacher(
                teacher_in(str(folder), run.objects.source), run.objects.task.auto_class, is_sharded=run.is_sharded
            )
        else:
            teacher = copy_sharded(state.model) if run.is_sharded else deepcopy(state.model)
            with run.adapted(teacher, Phase.TEACHER):
                train_phase(run, Phase.TEACHER, steps=run.total_steps, model=teacher)
            teacher.zero_grad()
            whole = gather_model(teacher) if run.is_sharded else teacher
            if whole is not None and is_rank_zero():
                with replacing_folder(folder, overwrite=False) as new:
                    whole.save_pretrained(new)
                    run.data.processor.save_pretrained(new)
        teacher.to(state.model.device)  # type: ignore[arg-type]
        run.evaluate("dense", "dense teacher", splits=run.data.module.splits[1:], model=teacher)
        state.teacher = Teacher(teacher, distillation=run.objects.distillation)


def load_teacher(source: ModelSource, auto_class: type, *, is_sharded: bool) -> PreTrainedModel:
    """Load a dense model to distill from, cut over the processes if the model of the run is."""
    if is_sharded:
        return load_sharded(source, auto_class, make_meta_model(source, auto_class))
    return source.load(auto_class)


def search(run: Run) -> None:
    """Train weights and gates together while the objective closes gates; a dense run trains its weights."""
    state, objective = run.state, run.objects.objective
    if objective is None:
        with run.adapted(state.model, Phase.DENSE):
            train_phase(run, Phase.DENSE, steps=run.total_steps)
    elif not _load_removed(run):
        if isinstance(run.objects.task, HasLoss) or run.settings.freezes(Phase.SEARCH):
            run.evaluate("dense", "dense", splits=run.data.module.splits[1:])
            if not run.is_sharded:
                state.summary.dense_samples = run.write_samples()
        with run.adapted(state.model, Phase.SEARCH):
            state.search = _search(run, objective)


def _search(run: Run, objective: Objective) -> Search:
    state, planned = run.state, run.state.search_steps
    with warnings.catch_warnings():
        # Printed below, as one line for each class; and the budget stands in every line of progress.
        warnings.filterwarnings("ignore", ".* (get no gates, so they keep all|has no budget, so)")
        gates = run.objects.make_gates(state.model)
        if len(gates.units) > 1:
            set_measured_macs(gates, state.model, run.data)
        search = Search(gates, objective, convergence=run.objects.convergence)
    num_others = count_units(state.model, "heads") - gates.num_heads if gates.num_heads else 0
    if num_others and is_rank_zero():
        print(f"{gates.num_heads} heads have a gate; {num_others} in excluded blocks stay besides those that are kept.")
    for one in gates.ungated if is_rank_zero() else ():
        print(f"No gates on {one}. If that is meant: gates.exclude, gates.towers.")
    if teaches_itself(run.settings, run.objects):
        from gating.teachers.teacher import OpenTeacher, Teacher

        state.teacher = Teacher(OpenTeacher(state.model, gates), distillation=run.objects.distillation)
    state.search_steps = train_phase(run, Phase.SEARCH, steps=planned, search=search)
    if teaches_itself(run.settings, run.objects):
        state.teacher = None  # The compact model is another one.
    reason = str(search.reason)
    state.summary.search = {"search_steps": state.search_steps, "search_ended": reason}
    if is_rank_zero():
        print(f"The search ended after {state.search_steps} of {planned} steps: {reason}.")
    search.update(1.0)
    state.history.gate_values = {name: values.tolist() for name, values in gates.by_block().items()}
    run.evaluate("search", "gates, end of search")
    return search


def remove(run: Run) -> None:
    """Remove the closed heads on every rank, and save the result; ``OperationError`` if an output or a rank differs."""
    state, search = run.state, run.state.search
    if search is None:
        return  # A dense run, or one that was resumed after the removal.
    gates = search.gates
    check_same(gates.log_alpha, "The location of the gates")
    kept = _chosen(run, search)
    if kept is not None:
        check_same(kept.float(), "The choice of heads")
    log_kept_heads(run.loggers, state.history, search, kept=kept, step=state.search_steps)
    dense = None
    if run.settings.compensate:
        with gates.detached() as model:
            dense = deepcopy(model)
    with state.summary.timed("finalize"), printed_warnings() as sentences:
        if run.is_sharded:
            from gating.sharding.removal import finalize_sharded

            # The old and the new shards are in memory together; gradients need not be.
            state.model.zero_grad()
            state.model, finalized = finalize_sharded(state.model, gates, kept=kept, probe=run.probe_batch())
        else:
            finalized = finalize(state.model, gates, kept=kept, probe=run.probe_batch())
    if finalized.unproven:
        state.summary.removal = {"unproven": list(finalized.unproven)}
        if is_rank_zero():
            print(f"warning: {unproven_note(finalized.unproven)}")
    state.summary.warnings += sentences
    state.history.folded = {name: list(values) for name, values in finalized.folded.items()}
    state.search = None
    run.evaluate("removed", "after removal")
    if dense is not None:
        _compensate(run, dense)
    _save_removed(run)


def _compensate(run: Run, dense: nn.Module) -> None:
    """Solve the output projections that have lost inputs, so that the compact model follows the dense one."""
    from gating.compensation.compensate import compensate

    batches = run.data.module.sample_batches(_SOLVED)
    with run.state.summary.timed("compensate"), printed_warnings() as sentences:
        report = compensate(run.state.model, dense, map(model_inputs, batches))
    run.state.summary.warnings += sentences
    if is_rank_zero():
        print(report)
    run.evaluate("compensated", "after compensation")


def _chosen(run: Run, search: Search) -> Tensor | None:
    """Return which gates stay; None for those that are open."""
    objective, gates = search.objective, search.gates
    if run.objects.budget["speedup"] and isinstance(objective, KeepsBudget):
        from gating.run import measured_budget

        return measured_budget.kept_at_speedup(run, objective, gates)
    return objective.kept(gates)


def recover(run: Run) -> None:
    """Train the compact model for the remaining steps, with a new optimizer."""
    if run.objects.objective is not None and run.recovery_steps:
        with run.adapted(run.state.model, Phase.RECOVERY):
            train_phase(run, Phase.RECOVERY, steps=run.recovery_steps, first_step=run.state.search_steps)


def _save_removed(run: Run) -> None:
    """Save the model after the removal, with the state of the run; called by all ranks, which may have shards."""
    state = run.state
    if not (is_rank_zero() or run.is_sharded):
        return
    path = checkpoint_path(run.folder.of_phase(Phase.REMOVED), state.search_steps)
    checkpoint = {
        "phase": path.parent.name,
        "record": getattr(state.model.config, RECORD_KEY),
        "history": state.history.state_dict(),
        "summary": state.summary.state_dict(),
        "search_steps": state.search_steps,
    }
    if run.is_sharded:
        save_shards(Path(broadcast(str(path))), {"weights": state.model.state_dict()}, checkpoint)
        return
    write_checkpoint({**checkpoint, "weights": state.model.state_dict()}, path)


def _load_removed(run: Run) -> bool:
    """Repeat a saved removal on the dense model, in place; return whether there is one."""
    path, state = run.last_checkpoint(Phase.REMOVED), run.state
    if path is None:
        if is_rank_zero() and run.folder.resumes:
            # Recovery starts again, too; its old checkpoints are of a model that no longer exists.
            for later in (Phase.REMOVED, Phase.RECOVERY):
                move_aside(run.folder.of_phase(later))
        return False
    checkpoint = read_checkpoint(path)
    if run.is_sharded:
        state.model = _load_compact_shards(state.model, path, checkpoint)
    else:
        remove_recorded(state.model, checkpoint["record"])
        state.model.load_state_dict(checkpoint["weights"])
    state.history.load_state_dict(checkpoint["history"])
    state.summary.load_state_dict(checkpoint["summary"])
    state.search_steps = checkpoint["search_steps"]
    for sentence in state.summary.warnings if is_rank_zero() else ():
        print(f"warning: {sentence}")
    return True


def _load_compact_shards(model: PreTrainedModel, path: Path, checkpoint: Mapping[str, Any]) -> PreTrainedModel:
    """Return a copy of a sharded model after a saved removal, with the weights of the checkpoint."""
    compact = meta_copy(model)
    remove_recorded(compact, checkpoint["record"])
    shard_copy(compact, model, tensors_of(model), fresh=True)
    load_own_state(compact, load_shards(path)["weights"])
    return compact
