"""Training steps with gates, alone, with a teacher and on frozen weights, and those of compact models."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import gating
from benchmarks.speed.shapes import Bench, Row, Times, compact_copy, row, text_batch, without_neurons
from gating.training.optimizers import AdamW

# The shares of a run's steps, as conf/config.yaml has them.
_SEARCH, _RECOVERY = 0.75, 0.25
_KEPT, _KEPT_OF_BOTH = 0.25, 0.4
_CASES = [("minilm", 32, 128), ("minilm", 16, 32), ("bert-base", 8, 128)]
_BOTH = ("heads", "neurons")
_CASES_OF_BOTH = [
    ("minilm", 32, 32, "bf16"),
    ("minilm", 16, 32, "fp32"),
    ("minilm", 32, 128, "fp32"),
    ("bert-base", 8, 128, "fp32"),
]
# Widths of SmolLM2-135M, of whose 30 layers these are eight.
_DECODER = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": None,
    "vocab_size": 8192,
}


def measure_steps(bench: Bench) -> Iterator[Row]:
    """Time dense, gated and compact steps: forward, backward, clipping and AdamW."""
    for precision in ("fp32", "bf16"):
        # The second precision on two shapes, which is enough to see whether casts of the gates matter.
        cases = _CASES if precision == "fp32" else [_CASES[0], _CASES[2]]
        for shape, batch_size, length in bench.some(cases, ("tiny", 4, 16)):
            dense = bench.bert(shape).train()
            batch = text_batch(dense, batch_size, length, labels=True)
            steps = {
                "dense": plain_step(dense, batch, precision),
                "twin": plain_step(bench.bert(shape).train(), batch, precision),
                "gated": gated_step(bench.bert(shape).train(), batch, precision),
                "compact": plain_step(compact_copy(dense, _KEPT), batch, precision),
            }
            times = bench.times(steps, rounds=41, warm_up=2, seconds=60)
            times["whole"] = _whole_run(times)
            for name, title, goal in (
                ("twin", "control: dense step / dense step", None),
                ("gated", "gated step / dense step", 1.02),
                ("compact", "recovery step / dense step", 1.0),
                ("whole", "all steps of a run / dense steps", 1.0),
            ):
                yield row(title, f"{shape} {batch_size} x {length} {precision}", times, name, "dense", goal)


def measure_steps_of_both(bench: Bench) -> Iterator[Row]:
    """Time steps with gates on heads and neurons, and those of compact models without some of both."""
    for shape, batch_size, length, precision in bench.some(_CASES_OF_BOTH, ("tiny", 4, 16, "fp32")):
        dense = bench.bert(shape).train()
        batch = text_batch(dense, batch_size, length, labels=True)
        steps = {
            "dense": plain_step(dense, batch, precision),
            "gated": gated_step(bench.bert(shape).train(), batch, precision, units=_BOTH),
            "compact": plain_step(without_neurons(compact_copy(dense, _KEPT_OF_BOTH), _KEPT_OF_BOTH), batch, precision),
        }
        # Models of BERT-base take many seconds a round.
        times = bench.times(steps, rounds=41, warm_up=2, seconds=150)
        times["whole"] = _whole_run(times)
        for name, title, goal in (
            ("gated", "step with gates on both / dense step", 1.03),
            ("compact", f"recovery step with {_KEPT_OF_BOTH:.0%} of both / dense step", 1.0),
            ("whole", "all steps of a run / dense steps", 0.9),
        ):
            yield row(title, f"{shape} {batch_size} x {length} {precision}", times, name, "dense", goal)


def measure_teaching(bench: Bench) -> Iterator[Row]:
    """Time gated steps with a teacher beside dense steps with the same teacher."""
    for shape, batch_size, length in bench.some([("minilm", 16, 32), ("minilm", 32, 128)], ("tiny", 4, 16)):
        teacher = gating.Teacher(bench.bert(shape), distillation=gating.Distillation(hidden_weight=1.0))
        dense, gated = (bench.bert(shape).train() for _ in range(2))
        batch = text_batch(dense, batch_size, length, labels=True)
        steps = {
            "dense": plain_step(dense, batch, "fp32", teacher=teacher),
            "gated": gated_step(gated, batch, "fp32", units=_BOTH, teacher=lambda _, teacher=teacher: teacher),
        }
        times = bench.times(steps, rounds=41, warm_up=2, seconds=60)
        title = "gated step with a teacher / dense step with it"
        yield row(
            title, f"{shape} {batch_size} x {length} fp32, logits and hidden states", times, "gated", "dense", 1.03
        )


def measure_frozen(bench: Bench) -> Iterator[Row]:
    """Time steps of gates on frozen weights beside steps that train weights, too, alone and with a teacher."""
    models = [bench.llama(**_DECODER).train() for _ in range(4)]
    for model in models[:2]:
        model.requires_grad_(False)
    batch = text_batch(models[0], *((2, 16) if bench.quick else (4, 128)))
    batch["labels"] = batch["input_ids"]
    other = gating.Teacher(bench.llama(**_DECODER))
    teachers: dict[str, Any] = {
        "frozen": None,
        "taught": lambda gates: gating.Teacher(gating.OpenTeacher(models[1], gates)),
        "full": None,
        "full, taught": lambda _: other,
    }
    steps = {
        name: gated_step(model, batch, "fp32", units=_BOTH, teacher=teacher)
        for model, (name, teacher) in zip(models, teachers.items(), strict=True)
    }
    times = bench.times(steps, rounds=21, seconds=120)
    case = "llama of 8 layers 4 x 128 fp32"
    yield row("gated step on frozen weights / gated step", case, times, "frozen", "full", 0.75)
    title = "gated step on frozen weights, taught by the model itself / on all weights, by another model"
    yield row(title, case, times, "taught", "full, taught")


def plain_step(
    model: PreTrainedModel, batch: dict[str, Tensor], precision: str, *, teacher: gating.Teacher | None = None
) -> Callable[[], None]:
    """Return a step that trains a model without gates, from a teacher, too, if there is one."""
    optimizer = AdamW().build(model)
    return lambda: _step(model, batch, optimizer, precision, teacher=teacher)


def gated_step(
    model: PreTrainedModel,
    batch: dict[str, Tensor],
    precision: str,
    *,
    units: Sequence[Any] = ("heads",),
    teacher: Callable[[gating.HeadGates], gating.Teacher] | None = None,
) -> Callable[[], None]:
    """Return a step that trains the gates of a model, and the weights that are not frozen, with the default objective.

    ``teacher`` is called with the gates to make the teacher.
    """
    gates = gating.inject_gates(model, units=units)
    given = None if teacher is None else teacher(gates)
    objective = gating.ExactBudget(keep=_KEPT)
    objective.attach(gates)
    optimizer = AdamW().build(model, gates=gates)

    def step() -> None:
        objective.update(gates, 0.5)
        _step(model, batch, optimizer, precision, penalty=lambda: objective.penalty(gates), teacher=given)

    return step


def _step(
    model: PreTrainedModel,
    batch: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    precision: str,
    *,
    penalty: Callable[[], Tensor] | None = None,
    teacher: gating.Teacher | None = None,
) -> None:
    device = model.device.type
    with torch.autocast(device, dtype=torch.bfloat16) if precision == "bf16" else nullcontext():
        answers = None if teacher is None else teacher(batch)
        outputs = model(**batch, **({} if teacher is None else teacher.options))
        loss = outputs.loss if teacher is None else teacher.loss(outputs.loss, outputs, batch, answers=answers)
    (loss if penalty is None else loss + penalty()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def _whole_run(times: Times) -> list[float]:
    """Return the times of a run's steps, of the search and of the recovery."""
    pairs = zip(times["gated"], times["compact"], strict=True)
    return [_SEARCH * gated + _RECOVERY * compact for gated, compact in pairs]
