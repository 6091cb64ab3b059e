"""Steps with a teacher, and steps of gates on frozen weights, beside dense and full ones."""

from collections.abc import Iterator
from typing import Any

import torch

import gating
from benchmarks.measuring import interleave, ratio
from benchmarks.speed.shapes import bert, llama, llama_1b_config, text_batch
from benchmarks.speed.training import gated_step, plain_step

__all__ = ["measure_frozen", "measure_teaching"]

Row = dict[str, Any]

BOTH = ("heads", "neurons")
CASES = [("minilm", 16, 32), ("minilm", 32, 128)]
# Widths of SmolLM2-135M, of whose 30 layers these are eight.
DECODER = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 8192,
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 99,
}


def measure_teaching(device: torch.device, *, quick: bool) -> Iterator[Row]:
    """Time gated steps with a teacher beside dense steps with the same teacher."""
    for shape, batch_size, length in [("tiny", 4, 16)] if quick else CASES:
        for name, distillation in (
            ("logits", gating.Distillation()),
            ("logits and hidden states", gating.Distillation(hidden_weight=1.0)),
        ):
            teacher = gating.Teacher(bert(shape, device=device), distillation=distillation)
            dense, gated = (bert(shape, device=device).train() for _ in range(2))
            batch = text_batch(dense, batch_size, length, labels=True)
            steps = {
                "dense": plain_step(dense, batch, "fp32", teacher=teacher),
                "gated": gated_step(gated, batch, "fp32", units=BOTH, teacher=teacher),
            }
            times = interleave(steps, rounds=41, warm_up=2, budget_s=1 if quick else 60)
            case = f"{shape} {batch_size} x {length} fp32, {name}"
            row = {"what": "gated step with a teacher / dense step with it", "case": case}
            yield row | {"ratio": ratio(times, "gated", "dense"), "at_most": 1.03}


def measure_frozen(device: torch.device, *, quick: bool) -> Iterator[Row]:
    """Time steps of gates on frozen weights beside steps that train weights, too, alone and with a teacher."""
    config = llama_1b_config(head_dim=None, **(TINY if quick else DECODER))
    models = [llama(config, device=device).train() for _ in range(4)]
    for model in models[:2]:
        model.requires_grad_(False)
    batch = text_batch(models[0], *((2, 16) if quick else (4, 128)))
    batch["labels"] = batch["input_ids"]
    other = gating.Teacher(llama(config, device=device))
    steps = {
        "frozen": gated_step(models[0], batch, "fp32", units=BOTH),
        "taught": gated_step(
            models[1],
            batch,
            "fp32",
            units=BOTH,
            teacher=lambda gates: gating.Teacher(gating.OpenTeacher(models[1], gates)),
        ),
        "full": gated_step(models[2], batch, "fp32", units=BOTH),
        "full, taught": gated_step(models[3], batch, "fp32", units=BOTH, teacher=other),
    }
    times = interleave(steps, rounds=21, warm_up=1, budget_s=1 if quick else 120)
    case = "llama of 8 layers 4 x 128 fp32"
    title = "gated step on frozen weights / gated step"
    yield {"what": title, "case": case, "ratio": ratio(times, "frozen", "full"), "at_most": 0.75}
    title = "gated step on frozen weights, taught by the model itself / on all weights, by another model"
    yield {"what": title, "case": case, "ratio": ratio(times, "taught", "full, taught")}
