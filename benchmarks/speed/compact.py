"""Latency of compact models, beside dense ones, models built that small, and the bound by arithmetic."""

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertForSequenceClassification, PreTrainedModel
from transformers.models.bert.modeling_bert import BertSelfAttention

import gating
from benchmarks.speed.shapes import Bench, Row, compact_copy, kept_heads, row, text_batch, without_neurons

_SHARES = (0.5, 0.25, 0.125)
_KEPT_OF_BOTH = 0.4


def measure_against_built(bench: Bench) -> Iterator[Row]:
    """Time a compact model beside a dense one that was built with so many heads from the start."""
    dense = bench.bert("bert-base").eval()
    title = "compact / built with so many heads"
    for share in _SHARES[:2]:
        compact, built = compact_copy(dense, share), built_bert(dense, kept_heads(dense, share))
        case = f"{bench.name('bert-base')} {share:.0%}"
        yield from _beside_built(bench, title, case, compact, built, [(1, 32), (8, 128)])
    # LLaMA's configuration knows the width of a head, so that transformers itself builds the smaller model.
    whole = bench.llama(num_hidden_layers=4, vocab_size=1000).eval()
    heads, groups = whole.config.num_attention_heads, whole.config.num_key_value_heads
    built = _llama_like(whole, num_attention_heads=heads // 2, num_key_value_heads=groups // 2)
    gating.prune_heads(whole, dict.fromkeys(range(whole.config.num_hidden_layers), range(heads // 2, heads)))
    yield from _beside_built(bench, title, "llama 50%", whole, built, [(1, 32), (4, 128)])


def measure_both_against_built(bench: Bench) -> Iterator[Row]:
    """Time models without heads and neurons beside models that transformers builds with the same widths."""
    dense = bench.bert("bert-base").eval()
    compact = without_neurons(compact_copy(dense, _KEPT_OF_BOTH), _KEPT_OF_BOTH)
    built = built_bert(dense, kept_heads(dense, _KEPT_OF_BOTH))
    for layer, block in zip(built.bert.encoder.layer, gating.find_feed_forward_blocks(compact), strict=True):
        layer.intermediate.dense = nn.Linear(dense.config.hidden_size, block.num_neurons, device=bench.device)
        layer.output.dense = nn.Linear(block.num_neurons, dense.config.hidden_size, device=bench.device)
    whole = bench.llama(num_hidden_layers=4, vocab_size=1000).eval()
    width = whole.config.intermediate_size
    narrow = _llama_like(whole, intermediate_size=width // 2)
    groups = range(width // 128, width // 64)
    gating.prune_neurons(whole, dict.fromkeys(range(whole.config.num_hidden_layers), groups))
    title, sizes = "compact / built with these widths", [(1, 32), (8, 128)]
    case = f"{bench.name('bert-base')} {_KEPT_OF_BOTH:.0%} of both"
    yield from _beside_built(bench, title, case, compact, built, sizes)
    yield from _beside_built(bench, title, "llama 50% of neurons", whole, narrow, sizes)


def _beside_built(
    bench: Bench, title: str, case: str, compact: PreTrainedModel, built: nn.Module, sizes: list[tuple[int, int]]
) -> Iterator[Row]:
    for batch_size, length in bench.some(sizes, (2, 16)):
        batch = text_batch(compact, batch_size, length)
        models = {"compact": compact, "built": built.eval()}
        times = bench.forward_times(models, batch, rounds=61, seconds=30)
        yield row(title, f"{case} {batch_size} x {length}", times, "compact", "built", 1.02)


def measure_speedup(bench: Bench) -> Iterator[Row]:
    """Time dense beside compact models over batch sizes and lengths; four layers, since all are alike."""
    dense = bench.bert("bert-base", num_layers=4).eval()
    models = {"dense": dense, **{str(share): compact_copy(dense, share) for share in _SHARES}}
    sizes = [(batch_size, length) for batch_size in (1, 8, 32) for length in (32, 128, 512)]
    for batch_size, length in bench.some(sizes, (1, 16)):
        batch = text_batch(dense, batch_size, length)
        times = bench.forward_times(models, batch, rounds=21, seconds=15)
        flops = {name: count_flops(model, batch) for name, model in models.items()}
        for share in map(str, _SHARES):
            title, case = (
                f"speed-up at {float(share):.1%} of the heads",
                f"{bench.name('bert-base')} {batch_size} x {length}",
            )
            yield row(title, case, times, "dense", share, flops_allow=flops["dense"] / flops[share])


def measure_michel(bench: Bench) -> Iterator[Row]:
    """Time the case of Michel et al. 2019 (arXiv 1905.10650), table 4: half of BERT-base's heads, growing batches."""
    dense = bench.bert("bert-base").eval()
    models = {"dense": dense, "compact": compact_copy(dense, 0.5)}
    for batch_size in bench.some([1, 4, 16, 64], 1):
        batch = text_batch(dense, batch_size, 16 if bench.quick else 128)
        times = bench.forward_times(models, batch, rounds=21, seconds=20)
        flops = count_flops(dense, batch) / count_flops(models["compact"], batch)
        title = "speed-up at 50.0% of the heads (Michel's setting)"
        case = f"{bench.name('bert-base')}, all layers, {batch_size} x {batch['input_ids'].shape[1]}"
        yield row(title, case, times, "dense", "compact", flops_allow=flops)


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


def _llama_like(model: PreTrainedModel, **changes: int) -> PreTrainedModel:
    """Build a model with another shape than a given one, by transformers alone."""
    config = deepcopy(model.config)
    config.update(changes)
    return type(model)(config).to(model.device)
