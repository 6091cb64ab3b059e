"""Latency of compact models, beside dense ones, models built that small, and the bound by arithmetic."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertForSequenceClassification, PreTrainedModel
from transformers.models.bert.modeling_bert import BertSelfAttention

import gating
from benchmarks.measuring import interleave, ratio
from benchmarks.speed.shapes import bert, compact_copy, kept_heads, llama, llama_1b_config, text_batch
from gating.structure.layers import count_units

__all__ = ["built_bert", "measure_against_built", "measure_michel", "measure_speedup", "times_of"]

Row = dict[str, Any]

SHARES = (0.5, 0.25, 0.125)


def measure_against_built(device: torch.device, *, quick: bool) -> Iterator[Row]:
    """Time a compact model beside a dense one that was built with so many heads from the start."""
    shape, sizes = ("tiny", [(2, 16)]) if quick else ("bert-base", [(1, 32), (8, 128)])
    dense = bert(shape, device=device).eval()
    for share in SHARES[:2]:
        compact, built = compact_copy(dense, share), built_bert(dense, kept_heads(dense, share))
        for batch_size, length in sizes:
            case = f"{shape} {share:.0%} {batch_size} x {length}"
            yield _compare(case, compact, built, text_batch(dense, batch_size, length), quick=quick)
    # LLaMA's configuration knows the width of a head, so that transformers itself builds the smaller model.
    layers = {"num_hidden_layers": 2 if quick else 4, "vocab_size": 1000}
    if quick:
        layers |= {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4}
        layers |= {"head_dim": 8}
    config = llama_1b_config(**layers)
    whole = llama(config, device=device).eval()
    half = {name: getattr(config, name) // 2 for name in ("num_attention_heads", "num_key_value_heads")}
    built = llama(llama_1b_config(**{**layers, **half}), device=device).eval()
    heads = range(half["num_attention_heads"], config.num_attention_heads)
    gating.prune_heads(whole, dict.fromkeys(range(config.num_hidden_layers), heads))
    for batch_size, length in [(2, 16)] if quick else [(1, 32), (4, 128)]:
        batch = text_batch(whole, batch_size, length)
        yield _compare(f"llama 50% {batch_size} x {length}", whole, built, batch, quick=quick)


def _compare(
    case: str, compact: PreTrainedModel, built: PreTrainedModel, batch: dict[str, Tensor], *, quick: bool
) -> Row:
    assert count_units(compact, "heads") * _head_dim(compact) == _attention_width(built)
    times = times_of({"compact": compact, "built": built}, batch, rounds=61, budget_s=1 if quick else 30)
    what = "compact / built with so many heads"
    return {"what": what, "case": case, "ratio": ratio(times, "compact", "built"), "at_most": 1.02}


def measure_speedup(device: torch.device, *, quick: bool) -> Iterator[Row]:
    """Time dense beside compact models over batch sizes and lengths; four layers, since all are alike."""
    shape, batch_sizes, lengths = ("tiny", (1,), (16,)) if quick else ("bert-base", (1, 8, 32), (32, 128, 512))
    dense = bert(shape, num_layers=4, device=device).eval()
    models = {"dense": dense, **{str(share): compact_copy(dense, share) for share in SHARES}}
    for batch_size in batch_sizes:
        for length in lengths:
            batch = text_batch(dense, batch_size, length)
            times = times_of(models, batch, rounds=21, budget_s=1 if quick else 15)
            flops = {name: count_flops(model, batch) for name, model in models.items()}
            for share in map(str, SHARES):
                yield {
                    "what": f"speed-up at {float(share):.1%} of the heads",
                    "case": f"{shape} {batch_size} x {length}",
                    "ratio": ratio(times, "dense", share),
                    "flops_allow": flops["dense"] / flops[share],
                }


def measure_michel(device: torch.device, *, quick: bool) -> Iterator[Row]:
    """Time the case of Michel et al. 2019 (arXiv 1905.10650), table 4: half of BERT-base's heads, growing batches."""
    shape, batch_sizes, length = ("tiny", (1,), 16) if quick else ("bert-base", (1, 4, 16, 64), 128)
    dense = bert(shape, device=device).eval()
    models = {"dense": dense, "compact": compact_copy(dense, 0.5)}
    for batch_size in batch_sizes:
        batch = text_batch(dense, batch_size, length)
        times = times_of(models, batch, rounds=21, budget_s=1 if quick else 20)
        yield {
            "what": "speed-up at 50.0% of the heads (Michel's setting)",
            "case": f"{shape}, all layers, {batch_size} x {length}",
            "ratio": ratio(times, "dense", "compact"),
            "flops_allow": count_flops(dense, batch) / count_flops(models["compact"], batch),
        }


def count_flops(model: PreTrainedModel, batch: dict[str, Tensor]) -> int:
    """Count the floating-point operations of a forward pass, without computing anything."""
    twin = deepcopy(model).to("meta")
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        # Without the mask, whose values the model looks at.
        twin(input_ids=batch["input_ids"].to("meta"))
    return counter.get_total_flops()


def built_bert(dense: PreTrainedModel, kept: dict[str, list[int]]) -> PreTrainedModel:
    """Build a BERT whose layers have so many heads from the start; transformers' own attention, no surgery."""
    config = dense.config
    head_dim = config.hidden_size // config.num_attention_heads
    model = BertForSequenceClassification(config)
    for layer, heads in zip(model.bert.encoder.layer, kept.values(), strict=True):
        width = len(heads) * head_dim
        narrow = deepcopy(config)
        narrow.hidden_size, narrow.num_attention_heads = width, len(heads)
        attention = BertSelfAttention(narrow, layer_idx=layer.attention.self.layer_idx)
        for name in ("query", "key", "value"):
            setattr(attention, name, nn.Linear(config.hidden_size, width))
        attention.config = config
        layer.attention.self = attention
        layer.attention.output.dense = nn.Linear(width, config.hidden_size)
    return model.to(dense.device).eval()


def times_of(
    models: dict[str, PreTrainedModel], batch: dict[str, Tensor], *, rounds: int, budget_s: float
) -> dict[str, list[float]]:
    """Time forward passes of models in turns."""

    def runner(model: PreTrainedModel) -> Any:
        def forward() -> None:
            with torch.inference_mode():
                model(**batch)

        return forward

    return interleave(
        {name: runner(model) for name, model in models.items()}, rounds=rounds, warm_up=1, budget_s=budget_s
    )


def _head_dim(model: nn.Module) -> int:
    return gating.find_attention_blocks(model)[0].head_dim


def _attention_width(model: nn.Module) -> int:
    blocks = gating.find_attention_blocks(model)
    return sum(block.output_projection.in_features for block in blocks)
