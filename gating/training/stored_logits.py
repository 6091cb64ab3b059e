"""Logits of a teacher for all training examples, computed once where that is less work than in each step."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gating.data.computed import computed_column, model_digest
from gating.data.datamodule import ExampleDataModule
from gating.data.examples import TEACHER_LOGITS
from gating.sharding.plan import is_sharded
from gating.storage.identity import table_digests
from gating.teachers.teacher import Teacher

# Larger tables of logits are not stored.
_MOST_BYTES = 2**30
# Rows that are sorted by their lengths together.
_CHUNK = 4096


def can_store_logits(
    data: ExampleDataModule, model: nn.Module, shapes: Mapping[str, Any], num_batches: int, *, store: bool | None = None
) -> bool:
    """Return whether a run stores the logits of its teacher: one vector for each text, of 1 GiB at most in all.

    Args:
        data: Data of the run.
        model: The model that learns; the teacher is cut over the processes if it is.
        shapes: Shapes of what is compared, by name, for a batch of examples.
        num_batches: Number of training batches of each process in the run.
        store: Whether to store them where it is possible; None if the run reads more examples than there are.
    """
    table, logits = data.table("train"), shapes.get("logits", ())
    has_vectors = set(shapes) == {"logits"} and len(logits) == 2 and "input_ids" in table.column_names
    # A teacher that is cut over processes answers in all of them at once.
    is_possible = has_vectors and not is_sharded(model) and len(table) * logits[1] * 4 <= _MOST_BYTES
    return is_possible and (num_batches * data.batch_size > len(table) if store is None else store)


def add_logits(data: ExampleDataModule, teacher: Teacher, *, device: torch.device) -> None:
    """Add the logits of a teacher to the training examples, in place; from the cache if they are there.

    Each process computes all of them, which is less work than its steps would be, and needs no shared disk.

    Args:
        data: Data of the run.
        teacher: The teacher; it is on the CPU afterwards, as no step asks it.
        device: Device to compute on.
    """

    def compute(rows: Sequence[int]) -> list[list[float]]:
        order = sorted(range(len(rows)), key=lambda index: lengths[rows[index]])
        answers = torch.empty(0)
        for start in range(0, len(order), data.eval_batch_size):
            chosen = order[start : start + data.eval_batch_size]
            batch = data.inputs("train", [rows[index] for index in chosen])
            logits: Tensor = teacher({name: tensor.to(device) for name, tensor in batch.items()})["logits"]
            if not len(answers):
                answers = torch.empty(len(rows), logits.shape[1])
            answers[chosen] = logits.float().cpu()
        return answers.tolist()

    table, lengths = data.table("train"), data.lengths_of("train")
    config = {**teacher.model.config.to_dict(), "_name_or_path": None}
    digest = model_digest(teacher.model, type(teacher.model).__name__, config)
    column = computed_column(
        TEACHER_LOGITS,
        compute,
        num_rows=len(table),
        dtype="float32",
        key=(digest, table_digests(table)),
        batch_size=_CHUNK,
        title="Logits of the teacher",
    )
    data.add_column("train", column)
    teacher.model.to("cpu")
