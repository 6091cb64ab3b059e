"""The plan of a trainer that ranks the units of its fine-tuned model: its steps, its examples and its order."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import TrainingArguments

from gating.compensation.ranking import order_gates, sampled_loss, search_in_order, without_targets
from gating.compensation.tokens import (
    RANKED,
    RANKED_POSITIONS,
    SOLVED,
    SOLVED_FIRST,
    SOLVED_POSITIONS,
    draw_rows,
    num_rows,
)
from gating.errors import InputError
from gating.gates import HeadGates
from gating.integrations.teaching import check_loss
from gating.integrations.wrappers import base_model, is_sentence_model
from gating.objectives import ExactBudget, IterativePruning, KeepsBudget, Objective
from gating.objectives.search import Search
from gating.plan import Plan, make_plan
from gating.proof.probe import make_probe
from gating.pruning.measure import measure_macs
from gating.structure.layers import iter_blocks
from gating.teachers.distillation import Distillation
from gating.teachers.teacher import check_outputs

# Examples whose multiply-accumulates are measured.
_MEASURED = 8
# Neurons of a group: without noise, the smaller, the better.
GROUP_SIZE = 8


def plan_of(
    trainer: Any,
    objective: Objective | None,
    *,
    units: Any,
    fine_tuning: float | None,
    recovery: float | None,
    learns_from_itself: bool,
    is_frozen: bool,
    is_needed: bool,
) -> Plan:
    """Return the plan of a trainer, by its arguments or by default; ``InputError`` for one with a second search."""
    can_rank = type(objective) in (type(None), ExactBudget, IterativePruning) and _can_rank(trainer)
    plan = make_plan(
        units,
        fine_tuning=fine_tuning,
        recovery=recovery,
        can_rank=can_rank,
        is_default=can_rank and not isinstance(objective, IterativePruning),
        is_frozen=is_frozen,
        learns_from_itself=learns_from_itself,
        is_needed=is_needed,
    )
    if plan.fine_tuning and not plan.ranks:
        raise InputError(
            f"fine_tuning={plan.fine_tuning} and recovery={plan.recovery} leave steps for a search, which a trainer "
            "has from the start: give shares whose sum is 1, or fine_tuning=0. A run of train.py can do both."
        )
    if plan.ranks and not can_rank:
        raise InputError(
            f"fine_tuning={plan.fine_tuning} ranks units, which {type(trainer).__name__} cannot with this objective "
            "and this loss: leave it out."
        )
    return plan


def _can_rank(trainer: Any) -> bool:
    """Return whether a trainer has examples to draw, and the loss of its model on them."""
    with suppress(InputError):
        check_loss(trainer)
        return hasattr(trainer.train_dataset, "__len__") and not is_sentence_model(trainer.model)
    return False


def total_steps(trainer: Any) -> int:
    """Return the number of optimizer steps that the arguments of a trainer give."""
    args = trainer.args
    if args.max_steps > 0:
        return int(args.max_steps)
    batches = len(trainer.get_train_dataloader())
    steps = max(1, -(-batches // args.gradient_accumulation_steps))
    return math.ceil(args.num_train_epochs * steps)


def dense_args(args: TrainingArguments, *, steps: int, total: int) -> TrainingArguments:
    """Return the arguments of the dense model: its steps, and the shares of warm-up and decay of the whole."""
    made, share = copy(args), steps / total
    made.max_steps = max(1, steps)
    if args.warmup_steps >= 1:
        made.warmup_steps = round(share * args.warmup_steps)
    made.lr_scheduler_kwargs = {
        name: round(share * value) if name.endswith("_steps") else value
        for name, value in dict[str, Any](args.lr_scheduler_kwargs or {}).items()  # type: ignore[arg-type]
    }
    return made


def _draw(trainer: Any, number: int, *, positions: int, skip: int = 0) -> list[int]:
    """Return the numbers of training examples that are drawn with the seed, short ones first."""
    table, widest = (
        trainer.train_dataset,
        max(sum(block.slot_widths) for block in iter_blocks(base_model(trainer.model))),
    )
    options: dict[str, Any] = {"seed": trainer.args.seed, "skip": skip, "most": positions * widest}
    return draw_rows(len(table), lambda row: _length(table[row]), number, **options)


def _batches(trainer: Any, rows: Sequence[int], *, size: int) -> list[dict[str, Any]]:
    """Return training examples in batches, on the device of the model."""
    table, collate = trainer.train_dataset, trainer.get_train_dataloader().collate_fn
    batches = (collate([table[row] for row in rows[start : start + size]]) for start in range(0, len(rows), size))
    return [send_to_device(batch, trainer.args.device) for batch in batches]


def _length(row: Any) -> int:
    """Return the number of tokens of an example; 1 of anything else."""
    return len(row["input_ids"]) if isinstance(row, Mapping) and "input_ids" in row else 1


def ranked_search(trainer: Any, gates: HeadGates, objective: KeepsBudget, *, has_labels: bool) -> Search:
    """Rank the units of a trainer's model, and return the search that chooses by their order."""
    model, generator = base_model(trainer.model), torch.Generator().manual_seed(0)
    rows = _draw(trainer, RANKED, positions=RANKED_POSITIONS)
    batches = _batches(trainer, rows, size=trainer.args.per_device_train_batch_size)

    def loss_of(batch: Mapping[str, Any]) -> Tensor:
        if not has_labels:
            return sampled_loss(model, gates, without_targets(batch), generator) * num_rows(batch)
        loss: Tensor = trainer.compute_loss(trainer.model, dict(batch))
        return loss * num_rows(batch)

    if len(gates.units) > 1:
        # As in a run of train.py, the costs are those of texts of median length.
        (median,) = _batches(trainer, rows[: (len(rows) + 1) // 2][-_MEASURED:], size=_MEASURED)
        gates.set_macs(measure_macs(model, gates, gates.blocks(model), without_targets(median)))
    return search_in_order(gates, objective, order_gates(model, gates, batches, objective, loss_of=loss_of))


def solved_batches(trainer: Any, *, has_recovery: bool) -> list[dict[str, Any]]:
    """Return batches without labels for the compensation, of other examples than the ranking if there are enough."""
    rows = _draw(trainer, SOLVED_FIRST if has_recovery else SOLVED, positions=SOLVED_POSITIONS, skip=RANKED)
    return [without_targets(batch) for batch in _batches(trainer, rows, size=trainer.args.per_device_train_batch_size)]


def own_distillation(model: nn.Module) -> Distillation | None:
    """Return the loss with which a model learns from its dense state: of what it returns; None if that is nothing."""
    base = base_model(model)
    for weight in (1.0, 0.0):
        with suppress(InputError):
            found = Distillation(hidden_weight=weight)
            check_outputs(base, make_probe(base), distillation=found)
            return found
    return None
