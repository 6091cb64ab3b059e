"""Tiny decoders of many families and sizes, with patterns of removed heads and neurons."""

import random
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import gating
from gating.structure.attention import iter_attention_blocks
from gating.structure.feed_forward import iter_feed_forward_blocks

__all__ = ["CACHE_PATTERNS", "FAMILIES", "PATTERNS", "make_case", "make_for_cache"]

# Family -> model type in transformers, and settings beside the sizes.
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "LLaMA": ("llama", {"tie_word_embeddings": False}),
    "LLaMA, tied": ("llama", {"tie_word_embeddings": True}),
    "Mistral": ("mistral", {"sliding_window": None}),
    "Qwen2": ("qwen2", {}),
    "Qwen3": ("qwen3", {"tie_word_embeddings": False}),
    "Qwen3, tied": ("qwen3", {"tie_word_embeddings": True}),
    "Gemma": ("gemma", {}),
    "Gemma 2": ("gemma2", {}),
    # Full attention in each second layer, as its models have it in each sixth.
    "Gemma 3": ("gemma3_text", {"sliding_window": 16, "sliding_window_pattern": 2}),
    "Phi3": ("phi3", {}),
    "Granite": ("granite", {}),
    "GPT-2": ("gpt2", {}),
    "GPT-NeoX": ("gpt_neox", {}),
}
# Even: as many of everything in each layer. Uneven: different numbers of groups and neurons. Single heads: also query
# heads by themselves, so that groups are filled up. Emptied: uneven, with layers that have no attention.
PATTERNS = ("even", "uneven", "single heads", "emptied")
CACHE_PATTERNS = ("even", "uneven", "emptied")
_WITHOUT_GROUPS = ("gpt2", "gpt_neox")
_GROUP_SIZE = 16


def make_case(family: str, pattern: str, *, steps: int, width: int | None = None) -> PreTrainedModel:
    """Return a compact decoder of random sizes, trained for some steps.

    Args:
        family: One of :data:`FAMILIES`.
        pattern: One of :data:`PATTERNS`.
        steps: Number of training steps.
        width: Width of a head; by default a random one.
    """
    model_type, settings = FAMILIES[family]
    rng = random.Random(f"{family} {pattern}")
    model = _make_dense(model_type, settings, rng, steps=steps, width=width)
    groups = [block.num_key_value_heads for block in iter_attention_blocks(model)]
    neurons = [block.num_neurons // _GROUP_SIZE for block in iter_feed_forward_blocks(model)]
    if pattern == "even":
        gone = [rng.sample(range(of), of // 2) for of in groups]
        gone_neurons = [rng.sample(range(of), of // 2) for of in neurons]
    else:
        gone = [rng.sample(range(of), rng.randint(0, of - 1)) for of in groups]
        # Different in two layers at least.
        gone[1] = [group for group in range(groups[1]) if group != len(gone[0]) % groups[1]]
        gone[2] = gone[0][:-1] if len(gone[0]) == groups[0] - 1 else list(range(len(gone[0]) + 1))
        gone_neurons = [rng.sample(range(of), rng.randint(0, of - 1)) for of in neurons]
    if pattern == "emptied":
        for layer in rng.sample(range(len(groups)), 2):
            gone[layer] = list(range(groups[layer]))
    _remove(model, gone, gone_neurons, single=rng if pattern == "single heads" else None)
    return model


def make_for_cache(pattern: str, *, share: float, layers: int = 8, context: int = 8192) -> PreTrainedModel:
    """Return a LLaMA with random weights that keeps a share of its key-value groups.

    Args:
        pattern: One of :data:`CACHE_PATTERNS`; any other keeps all.
        share: Share of the groups to keep.
        layers: Number of layers, which is also that of groups in each; a multiple of 8.
        context: Longest text.
    """
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": layers, "num_attention_heads": layers, "num_key_value_heads": layers}
    config = LlamaConfig(
        vocab_size=300, hidden_size=128, intermediate_size=128, head_dim=32, max_position_embeddings=context, **sizes
    )
    model = LlamaForCausalLM(config).eval()
    kept = round(share * layers)
    counts = {
        "even": [kept] * layers,
        # One more here is one less there, up to half as many again.
        "uneven": [kept + (kept // 2 if layer % 2 else -(kept // 2)) for layer in range(layers)],
        "emptied": _with_emptied(kept, layers),
    }.get(pattern, [layers] * layers)
    _remove(model, [list(range(count, layers)) for count in counts], [[]] * layers, single=None)
    return model


def _with_emptied(kept: int, layers: int) -> list[int]:
    """Return counts of groups of which a quarter of the layers has none; the other layers have those in their place."""
    empty = layers // 4
    more, rest = divmod(kept * layers, layers - empty)
    counts = [more + (number < rest) for number in range(layers - empty)]
    for number in range(empty):
        counts.insert(2 + 3 * number, 0)
    return counts


def _make_dense(
    model_type: str, settings: Mapping[str, Any], rng: random.Random, *, steps: int, width: int | None
) -> PreTrainedModel:
    """Return a decoder with all heads, whose norms and biases differ from their initial values."""
    config = AutoConfig.for_model(model_type, **{**_draw_sizes(model_type, rng, width), **settings})
    torch.manual_seed(rng.randrange(1000))
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.05 * torch.randn_like(parameter)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    tokens = torch.randint(3, config.vocab_size, (8, 20))
    for _ in range(steps):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def _draw_sizes(model_type: str, rng: random.Random, width: int | None) -> dict[str, Any]:
    groups, has_groups = rng.choice([3, 4]), model_type not in _WITHOUT_GROUPS
    heads, drawn = 2 * groups, rng.choice([8, 16, 24])
    width = width or drawn
    sizes: dict[str, Any] = {
        "vocab_size": 263,
        "max_position_embeddings": 128,
        **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        "num_hidden_layers": rng.randint(4, 5),
        "num_attention_heads": heads,
        # The width of a head follows from these two in some families.
        "hidden_size": rng.choice([72, 96]) if has_groups and model_type != "phi3" else heads * width,
        "n_inner" if model_type == "gpt2" else "intermediate_size": _GROUP_SIZE * rng.randint(4, 6),
    }
    return sizes | ({"num_key_value_heads": groups, "head_dim": width} if has_groups else {})


def _remove(
    model: PreTrainedModel, groups: list[list[int]], neurons: list[list[int]], *, single: random.Random | None
) -> None:
    """Remove groups and neurons of each layer, and a single query head of each if its group has others."""
    heads = {}
    for layer, block in enumerate(iter_attention_blocks(model)):
        size = block.num_heads // block.num_key_value_heads
        heads[layer] = [group * size + number for group in groups[layer] for number in range(size)]
        left = [group for group in range(block.num_key_value_heads) if group not in groups[layer]]
        if single is not None and size > 1:
            heads[layer].append(single.choice(left) * size + single.randrange(size))
    gating.prune_heads(model, {layer: sorted(gone) for layer, gone in heads.items() if gone})
    if any(neurons):
        numbers = {layer: gone for layer, gone in enumerate(neurons) if gone}
        gating.prune_neurons(model, numbers, group_size=_GROUP_SIZE)
