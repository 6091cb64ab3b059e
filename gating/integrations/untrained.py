"""Make ``gating.prune`` work without training: rank units, remove the lowest, compensate the others."""

import time
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    default_data_collator,
)

from gating.compensation.compensate import compensate
from gating.compensation.ranking import Embed, kept_at_speedup, rank_units, remove_chosen, without_targets
from gating.compensation.result import CompensationReport
from gating.compensation.tokens import RANKED, RANKED_POSITIONS, SOLVED, SOLVED_POSITIONS, draw_rows
from gating.embedding.parts import SentenceHead
from gating.integrations.wrappers import base_model, is_sentence_model
from gating.objectives import ExactBudget
from gating.pruning.finalize import FinalizeReport
from gating.pruning.latency import MAX_SECONDS
from gating.structure.layers import iter_blocks
from gating.teachers.distillation import IGNORED

# Examples of a batch, and rows of the timed one.
_BATCH_SIZE, _TIMED_ROWS = 16, 8


def prune_untrained(
    model: Any,
    rows: Any,
    *,
    processor: Any,
    speedup: float | None,
    keep: float | None,
    num_heads: int | None,
    gate_options: Mapping[str, Any],
) -> Any:
    """Return a compact copy of a fine-tuned model, without a step of training.

    Args:
        model: The dense model, which stays as it is, or a ``SentenceTransformer`` with it.
        rows: A ``datasets.Dataset`` with arguments of the model in its columns.
        processor: Tokenizer that pads the rows; None for rows of one shape.
        speedup: Time of the dense model over that of the compact one; one of the three budgets is given.
        keep: Share of the cost of all units that stays.
        num_heads: Number of heads that stay.
        gate_options: Arguments of :func:`gating.inject_gates`.
    """
    started = time.perf_counter()
    compact = deepcopy(model)
    dense, base = base_model(model), base_model(compact)
    ranked, solved = make_batches(dense, rows, processor)
    options: dict[str, Any] = {"gate_options": gate_options}
    budget = {"num_heads": num_heads} if num_heads is not None else {"keep": 1 / speedup if speedup else keep}
    gates = rank_units(base, ranked, embed=_embed_of(model), **options, **budget)
    kept = ExactBudget(**budget).kept(gates)
    if speedup is not None:
        batch = {name: one[-_TIMED_ROWS:] for name, one in without_targets(solved[-1]).items()}
        kept = kept_at_speedup(base, gates, batch, speedup=speedup, seconds=MAX_SECONDS)
    removed = remove_chosen(base, kept, probe=without_targets(solved[0]), **options)
    report = compensate(base, dense, map(without_targets, solved))
    print(_line(removed, report, seconds=time.perf_counter() - started), flush=True)
    return compact


def _line(removed: FinalizeReport, report: CompensationReport, *, seconds: float) -> str:
    """Return a sentence with the units kept, the seconds and the errors."""
    before, after = removed.before.units, removed.after.units
    units = " and ".join(f"{after[unit]:,} of {number:,} {unit}" for unit, number in before.items() if number)
    first, last = report.outputs
    return (
        f"Kept {units} without training, in {seconds:.0f} s. The outputs miss those of the dense model by {first:.3f} "
        f"after the removal, and by {last:.3f} after the compensation (squared error on held-out examples, relative)."
    )


def make_batches(
    model: PreTrainedModel, rows: Any, processor: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return batches for the ranking and for the compensation, of other rows if there are enough, short ones first."""
    widest = max(sum(block.slot_widths) for block in iter_blocks(model))

    def draw(number: int, positions: int, skip: int) -> list[int]:
        length_of = lambda row: len(rows[row].get("input_ids", "x"))  # noqa: E731
        return draw_rows(len(rows), length_of, number, seed=0, skip=skip, most=positions * widest)

    both = draw(RANKED, RANKED_POSITIONS, 0), draw(SOLVED, SOLVED_POSITIONS, RANKED)
    ranked, solved = (_collate(model, rows.select(numbers), processor) for numbers in both)
    return (list(map(_with_next_tokens, ranked)) if model.can_generate() else ranked), solved


def _with_next_tokens(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch of a decoder with its tokens as labels."""
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    return {**batch, "labels": batch.get("labels", labels)}


def _collate(model: PreTrainedModel, rows: Any, processor: Any) -> list[dict[str, Any]]:
    """Return batches of rows in their order."""
    examples = [dict(row) for row in rows]
    device, collate = next(model.parameters()).device, _collator(processor, examples[0])
    starts = range(0, len(examples), _BATCH_SIZE)
    batches = [collate(examples[start : start + _BATCH_SIZE]) for start in starts]
    return [{name: one.to(device) for name, one in batch.items()} for batch in batches]


def _collator(processor: Any, example: Mapping[str, Any]) -> Any:
    if processor is None or "input_ids" not in example:
        return default_data_collator
    if isinstance(example.get("labels"), list) and len(example["labels"]) == len(example["input_ids"]):
        return DataCollatorForTokenClassification(processor)
    return DataCollatorWithPadding(processor)


def _embed_of(model: Any) -> Embed | None:
    """Return the function that makes embeddings of the outputs of a model's transformer; None for other models."""
    if not is_sentence_model(model):
        return None
    head = SentenceHead(deepcopy([*model.children()][1:]))
    return lambda outputs, batch: head(outputs, batch["attention_mask"])
