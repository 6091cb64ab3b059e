"""Cost of gates and of finalizing at growing numbers of layers and heads."""

import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

import gating
from benchmarks.measuring import interleave, ratio
from benchmarks.speed.shapes import small_weights, text_batch

__all__ = ["measure_growth"]

Row = dict[str, Any]

HIDDEN = 256


def measure_growth(device: torch.device, *, quick: bool) -> Iterator[Row]:
    """Time gated and dense passes forward and backward, and finalizing, per layer and over numbers of heads."""
    sizes = [(2, 4), (4, 4)] if quick else [(12, 8), (12, 32), (12, 128), (25, 128), (50, 128), (100, 128)]
    for num_layers, num_heads in sizes:
        gated = _model(num_layers, num_heads, device)
        dense = _model(num_layers, num_heads, device)
        gates = gating.inject_gates(gated)
        objective = gating.ExactBudget(keep=0.25)
        objective.attach(gates)
        objective.update(gates, 0.5)
        batch = text_batch(dense, 8, 64, labels=True)
        calls = {"dense": partial(_pass, dense, batch), "gated": partial(_pass, gated, batch)}
        times = interleave(calls, rounds=21, warm_up=1, budget_s=1 if quick else 15)
        differences = [one - other for one, other in zip(times["gated"], times["dense"], strict=True)]
        seconds = _finalize(gated, gates)
        costs = {
            "gate_ms_per_layer": 1e3 * statistics.median(differences) / num_layers,
            "finalize_ms_per_layer": 1e3 * seconds / num_layers,
        }
        yield {
            "what": "gated / dense, forward and backward, as models grow",
            "case": f"{num_layers} layers x {num_heads} heads",
            "ratio": ratio(times, "gated", "dense"),
            **costs,
            "finalize_s": seconds,
        }


def _pass(model: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    model(**batch).loss.backward()


def _finalize(model: BertForSequenceClassification, gates: gating.HeadGates) -> float:
    with torch.no_grad():
        gates.log_alpha.copy_(torch.randn(gates.num_heads, generator=torch.Generator().manual_seed(0)))
    start = time.perf_counter()
    gating.finalize(model, gates, num_heads=gates.num_heads // 4)
    return time.perf_counter() - start


def _model(num_layers: int, num_heads: int, device: torch.device) -> BertForSequenceClassification:
    torch.manual_seed(0)
    with device, small_weights():
        config = BertConfig(
            hidden_size=HIDDEN,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            intermediate_size=2 * HIDDEN,
            vocab_size=1000,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        return BertForSequenceClassification(config).train()
