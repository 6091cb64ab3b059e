"""The phases of a run: the fine-tuning, the search, the removal, the recovery.

Each is a function of the run. It begins from the state of the one before, goes on from its own last checkpoint, and
ends with a saved state; one that has ended is loaded. So resuming a run is to call all four again. A dense run is a
fine-tuning alone.
"""

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from gating.compensation.tokens import RANKED, RANKED_POSITIONS, SOLVED, SOLVED_FIRST
from gating.data.examples import model_inputs, num_rows
from gating.distributed.collectives import broadcast, is_rank_zero
from gating.gates import HeadGates
from gating.loader.modeling import RECORD_KEY
from gating.loader.saving import has_lost_units
from gating.models.sources import ModelSource, load_sharded, make_meta_model
from gating.objectives import KeepsBudget, Objective
from gating.objectives.gate_metrics import quantity_of
from gating.objectives.search import Search
from gating.pruning.finalize import finalize
from gating.pruning.plan import remove_recorded
from gating.pruning.prune_report import unproven_note
from gating.run.build import teaches_itself
from gating.run.data import set_measured_macs
from gating.run.folder import Phase
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


def fine_tune(run: Run) -> None:
    """Train the dense model for its steps; unless the run is dense, it is saved, and others may learn from it."""
    state, is_last = run.state, run.objects.objective is None
    steps = run.total_steps if is_last else state.dense_steps
    if steps:
        with run.adapted(state.model, Phase.DENSE):
            trained = train_phase(run, Phase.DENSE, steps=steps)
    if is_last:
        return
    if steps:
        state.dense_steps = trained
        _save_dense(run)
    distillation = run.objects.distillation
    if distillation is not None and state.teacher is None and not teaches_itself(run.settings, run.objects):
        from gating.teachers.teacher import Teacher

        copied = copy_sharded(state.model) if run.is_sharded else deepcopy(state.model)
        copied.zero_grad()
        state.teacher = Teacher(copied, distillation=distillation)


def _save_dense(run: Run) -> None:
    """Save the dense model beside the compact one, unless a run that is resumed has."""
    folder = run.folder.dense
    if broadcast(folder.is_dir()):
        return
    whole = gather_model(run.state.model) if run.is_sharded else run.state.model
    if whole is not None and is_rank_zero():
        with replacing_folder(folder, overwrite=False) as new:
            whole.save_pretrained(new)
            run.data.processor.save_pretrained(new)


def load_teacher(source: ModelSource, auto_class: type, *, is_sharded: bool) -> PreTrainedModel:
    """Load a dense model to distill from, cut over the processes if the model of the run is."""
    if is_sharded:
        return load_sharded(source, auto_class, make_meta_model(source, auto_class))
    return source.load(auto_class)


def search(run: Run) -> None:
    """Train weights and gates together while the objective closes gates; without steps, rank the units instead."""
    state, objective = run.state, run.objects.objective
    if objective is None or _load_removed(run):
        return
    evaluate_dense(run)
    if run.settings.plan.ranks:
        state.search = _rank(run, objective)
        return
    with run.adapted(state.model, Phase.SEARCH):
        state.search = _search(run, objective)


def evaluate_dense(run: Run) -> None:
    """Evaluate the dense model that units are removed from, if the run has one, once."""
    state, is_frozen = run.state, run.settings.freezes(Phase.SEARCH)
    has_dense = state.dense_steps or run.settings.plan.ranks or is_frozen or isinstance(run.objects.task, HasLoss)
    if not has_dense or "dense" in state.summary.metrics:
        return
    run.evaluate("dense", "dense, before the removal", splits=run.data.module.splits[1:])
    if not run.is_sharded:
        state.summary.dense_samples = run.write_samples()


def _rank(run: Run, objective: Objective) -> Search:
    """Rank the units of the dense model in rounds, by the objective's ranking or by Fisher information."""
    from gating.compensation.ranking import order_gates, search_in_order

    assert isinstance(objective, KeepsBudget)
    state, task, gates = run.state, run.objects.task, _make_gates(run)
    widest = max(sum(block.slot_widths) for block in gates.blocks())
    number = _at_most(run, RANKED)
    batches = run.data.module.sample_batches(number, most=RANKED_POSITIONS * widest)
    device = state.model.device

    def loss_of(batch: Mapping[str, Any]) -> Tensor:
        batch = {name: one.to(device) if isinstance(one, Tensor) else one for name, one in batch.items()}
        outputs = state.model(**model_inputs(batch))
        loss: Tensor = task.loss(outputs, batch, model=state.model) if isinstance(task, HasLoss) else outputs.loss
        return loss * num_rows(batch)

    number = sum(map(num_rows, batches))
    if not state.order:
        if is_rank_zero():
            print(f"After {state.dense_steps} steps of the dense model, its units are ranked on {number:,} examples.")
        with state.summary.timed("search"):
            smallest = state.smallest or objective
            state.order.append(order_gates(state.model, gates, batches, smallest, loss_of=loss_of))
    _end_search(run, f"the units were ranked on {number:,} training examples")
    _count_again(run, gates, objective)
    return search_in_order(gates, objective, state.order[0])


def _count_again(run: Run, gates: HeadGates, objective: Objective) -> None:
    """Give the observations of the dense model the quantity of the budget, of which it has all."""
    history = run.state.history
    history.quantity = quantity_of(gates, objective)
    whole = 1.0 if history.quantity == "cost" else float(count_units(run.state.model, history.quantity))
    history.observations = [replace(one, expected_open=whole, open=whole, target=whole) for one in history.observations]


def _at_most(run: Run, number: int) -> int:
    """Return a number of examples, but no more than the run trains on."""
    return min(number, run.total_steps * run.data.module.batch_size)


def _end_search(run: Run, reason: str) -> None:
    """Note the steps before the removal, and the reason for the choice."""
    state = run.state
    steps = {"fine_tuning_steps": state.dense_steps} if state.dense_steps else {}
    state.summary.search = {**steps, "search_steps": state.search_steps, "search_ended": reason}


def _make_gates(run: Run) -> HeadGates:
    """Put gates on the model, and print which blocks have none."""
    state = run.state
    with warnings.catch_warnings():
        # Printed below, as one line for each class.
        warnings.filterwarnings("ignore", ".* get no gates, so they keep all")
        gates = run.objects.make_gates(state.model)
        if len(gates.units) > 1:
            set_measured_macs(gates, state.model, run.data)
    num_others = count_units(state.model, "heads") - gates.num_heads if gates.num_heads else 0
    if num_others and is_rank_zero():
        print(f"{gates.num_heads} heads have a gate; {num_others} in excluded blocks stay besides those that are kept.")
    for one in gates.ungated if is_rank_zero() else ():
        print(f"No gates on {one}. If that is meant: gates.exclude, gates.towers.")
    return gates


def _search(run: Run, objective: Objective) -> Search:
    state, planned = run.state, run.state.search_steps
    gates, teacher = _make_gates(run), run.state.teacher
    with warnings.catch_warnings():
        # The budget stands in every line of progress.
        warnings.filterwarnings("ignore", ".* has no budget, so")
        search = Search(gates, objective, convergence=run.objects.convergence)
    _count_again(run, gates, objective)
    if teaches_itself(run.settings, run.objects):
        from gating.teachers.teacher import OpenTeacher, Teacher

        state.teacher = Teacher(OpenTeacher(state.model, gates), distillation=run.objects.distillation)
    state.search_steps = train_phase(run, Phase.SEARCH, steps=planned, first_step=state.dense_steps, search=search)
    state.teacher = teacher  # The compact model is no teacher.
    reason = str(search.reason)
    _end_search(run, reason)
    if is_rank_zero():
        print(f"The search ended after {state.search_steps} of {planned} steps: {reason}.")
    search.update(1.0)
    state.history.gate_values = _values_of(gates)
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
    log_kept_heads(run.loggers, state.history, search, kept=kept, step=run.removed_at)
    dense = _dense_of(run, gates) if run.settings.compensates else None
    ranks = run.settings.plan.ranks and kept is not None
    # A ranking has learned no values of gates: those of the choice are 0 and 1.
    with gates.fixed_at(kept.float()) if ranks else nullcontext():  # type: ignore[union-attr]
        if ranks:
            state.history.gate_values = _values_of(gates)
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
    if dense is not None and has_lost_units(state.model):
        _compensate(run, dense)
    _save_removed(run)


def _values_of(gates: HeadGates) -> dict[str, list[float]]:
    """Return the present values of the gates by block."""
    return {name: values.tolist() for name, values in gates.by_block().items()}


def _dense_of(run: Run, gates: HeadGates) -> nn.Module:
    """Return the dense model that a compact one is to follow: the teacher if it is that one, else a copy."""
    teacher = run.state.teacher
    if teacher is not None and run.objects.teacher is None:
        dense: nn.Module = teacher.model
        return dense
    with gates.detached() as model:
        return deepcopy(model)


def _compensate(run: Run, dense: nn.Module) -> None:
    """Solve the output projections that have lost inputs, so that the compact model follows the dense one."""
    from gating.compensation.compensate import compensate

    number = SOLVED_FIRST if run.recovery_steps else SOLVED
    batches = run.data.module.sample_batches(_at_most(run, number), skip=_at_most(run, RANKED))
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
            train_phase(run, Phase.RECOVERY, steps=run.recovery_steps, first_step=run.removed_at)


def _save_removed(run: Run) -> None:
    """Save the model after the removal, with the state of the run; called by all ranks, which may have shards."""
    state = run.state
    if not (is_rank_zero() or run.is_sharded):
        return
    path = checkpoint_path(run.folder.of_phase(Phase.REMOVED), run.removed_at)
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
