"""A training step with gates, and one of the compact model, beside the dense model's."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import gating
from benchmarks.measuring import interleave, ratio
from benchmarks.speed.shapes import bert, compact_copy, text_batch
from benchmarks.speed.variants import VARIANTS
from gating.training.optimizers import AdamW

__all__ = ["RECOVERY", "SEARCH", "gated_step", "measure_steps", "measure_variants", "plain_step"]

Row = dict[str, Any]

# The shares of a run's steps, as conf/config.yaml has them.
SEARCH, RECOVERY = 0.75, 0.25
KEPT = 0.25
CASES = [("minilm", 8, 128), ("minilm", 32, 128), ("minilm", 16, 32), ("bert-base", 8, 128), ("bert-base", 16, 32)]


def measure_steps(device: torch.device, *, quick: bool) -> Iterator[Row]:
    """Time dense, gated and compact steps: forward, backward, clipping and AdamW."""
    for precision in ("fp32", "bf16"):
        # The second precision on two shapes, which is enough to see whether casts of the gates matter.
        cases = [("tiny", 4, 16)] if quick else CASES if precision == "fp32" else [CASES[1], CASES[3]]
        for shape, batch_size, length in cases:
            dense = bert(shape, device=device).train()
            batch = text_batch(dense, batch_size, length, labels=True)
            steps = {
                "dense": plain_step(dense, batch, precision),
                "twin": plain_step(bert(shape, device=device).train(), batch, precision),
                "gated": gated_step(bert(shape, device=device).train(), batch, precision),
                "compact": plain_step(compact_copy(dense, KEPT), batch, precision),
            }
            times = interleave(steps, rounds=41, warm_up=2, budget_s=1 if quick else 60)
            whole = [
                SEARCH * gated + RECOVERY * compact
                for gated, compact in zip(times["gated"], times["compact"], strict=True)
            ]
            times["whole"] = whole
            case = f"{shape} {batch_size} x {length} {precision}"
            for name, title in (
                ("twin", "control: dense step / dense step"),
                ("gated", "gated step / dense step"),
                ("compact", "recovery step / dense step"),
                ("whole", "all steps of a run / dense steps"),
            ):
                goal = {"gated": 1.02, "compact": 1.0, "whole": 1.0}.get(name)
                yield {"what": title, "case": case, "ratio": ratio(times, name, "dense"), "at_most": goal}


def measure_variants(device: torch.device, *, quick: bool) -> Iterator[Row]:
    """Time other ways to apply gates, beside the dense step, in the same rounds as the way that is used."""
    for precision in ("fp32", "bf16"):
        for shape, batch_size, length in [("tiny", 4, 16)] if quick else [("minilm", 8, 128), ("minilm", 32, 128)]:
            dense = bert(shape, device=device).train()
            batch = text_batch(dense, batch_size, length, labels=True)
            steps = {"dense": plain_step(dense, batch, precision)}
            for name, install in VARIANTS.items():
                steps[name] = gated_step(bert(shape, device=device).train(), batch, precision, install)
            times = interleave(steps, rounds=31, warm_up=1, budget_s=1 if quick else 40)
            for name in VARIANTS:
                case = f"{shape} {batch_size} x {length} {precision}"
                yield {"what": f"step with gates by {name} / dense step", "case": case} | {
                    "ratio": ratio(times, name, "dense")
                }


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
    install: Callable[[gating.HeadGates], None] = lambda _: None,
    *,
    units: Sequence[Any] = ("heads",),
    teacher: gating.Teacher | Callable[[gating.HeadGates], gating.Teacher] | None = None,
) -> Callable[[], None]:
    """Return a step that trains the gates of a model, and the weights that are not frozen, with the default objective.

    Args:
        model: The model; it gets gates.
        batch: The batch of every step.
        precision: ``fp32`` or ``bf16``.
        install: Called with the gates, to multiply by them in another way.
        units: Units with gates.
        teacher: Teacher, or a function of the gates that makes it.
    """
    gates = gating.inject_gates(model, units=units)
    install(gates)
    given = teacher if teacher is None or isinstance(teacher, gating.Teacher) else teacher(gates)
    objective = gating.ExactBudget(keep=KEPT)
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
