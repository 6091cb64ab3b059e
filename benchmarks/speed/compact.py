"""Latency of compact models, beside dense ones, those built that small, and the bound by arithmetic."""

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

import gating
from benchmarks.speed.shapes import Bench, Row, compact_copy, row, text_batch

_SHARES = (0.5, 0.25, 0.125)


def measure_against_built(bench: Bench) -> Iterator[Row]:
    """Time compact LLaMAs beside those that transformers itself builds with so many heads, or so many neurons."""
    # Its configuration knows the width of a head, so that the smaller model has a configuration.
    title, layers = "compact / built as small", range(4)
    whole = bench.llama(num_hidden_layers=4, vocab_size=1000).eval()
    heads, groups = whole.config.num_attention_heads, whole.config.num_key_value_heads
    built = _llama_like(whole, num_attention_heads=heads // 2, num_key_value_heads=groups // 2)
    gating.prune_heads(whole, dict.fromkeys(layers[: whole.config.num_hidden_layers], range(heads // 2, heads)))
    yield from _beside_built(bench, title, "llama, 50% of heads", whole, built, [(1, 32), (4, 128)])
    whole = bench.llama(num_hidden_layers=4, vocab_size=1000).eval()
    width = whole.config.intermediate_size
    built = _llama_like(whole, intermediate_size=width // 2)
    gone = range(width // 128, width // 64)
    gating.prune_neurons(whole, dict.fromkeys(layers[: whole.config.num_hidden_layers], gone))
    yield from _beside_built(bench, title, "llama, 50% of neurons", whole, built, [(1, 32), (8, 128)])


def _beside_built(
    bench: Bench, title: str, case: str, compact: PreTrainedModel, built: nn.Module, sizes: list[tuple[int, int]]
) -> Iterator[Row]:
    for batch_size, length in bench.some(sizes, (2, 16)):
        batch = text_batch(compact, batch_size, length)
        models = {"compact": compact, "built": built.eval()}
        times = bench.forward_times(models, batch, rounds=61, seconds=30)
        yield row(title, f"{case} {batch_size} x {length}", times, "compact", "built", 1.02)


def measure_speedup(bench: Bench) -> Iterator[Row]:
    """Time dense beside compact models over lengths; four layers, since all are alike."""
    dense = bench.bert("bert-base", num_layers=4).eval()
    models = {"dense": dense, **{str(share): compact_copy(dense, share) for share in _SHARES}}
    sizes = [(8, length) for length in (32, 128, 512)]
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


def count_flops(model: PreTrainedModel, batch: dict[str, Tensor]) -> int:
    """Count the floating-point operations of a forward pass, without computing anything."""
    twin = deepcopy(model).to("meta")
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        # Without the mask, whose values the model looks at.
        twin(input_ids=batch["input_ids"].to("meta"))
    return counter.get_total_flops()


def _llama_like(model: PreTrainedModel, **changes: int) -> PreTrainedModel:
    """Build a model with another shape than a given one, by transformers alone."""
    config = deepcopy(model.config)
    config.update(changes)
    return type(model)(config).to(model.device)
