"""Models of well-known shapes with random weights, inputs for them, and heads to keep."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

import gating

__all__ = ["bert", "compact_copy", "kept_heads", "llama", "llama_1b_config", "small_weights", "text_batch"]

BERT_SHAPES = {
    # Hidden width, layers, heads, width of the feed-forward layer.
    "minilm": (384, 6, 12, 1536),
    "bert-base": (768, 12, 12, 3072),
    "tiny": (64, 2, 4, 128),
}


def _bert_config(shape: str, *, num_layers: int | None = None) -> BertConfig:
    """Return the configuration of a BERT of a known shape, with its own number of layers or another."""
    hidden, layers, heads, intermediate = BERT_SHAPES[shape]
    return BertConfig(
        hidden_size=hidden,
        num_hidden_layers=num_layers or layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        vocab_size=1000 if shape == "tiny" else 30522,
    )


def bert(shape: str, *, num_layers: int | None = None, device: torch.device) -> BertForSequenceClassification:
    """Build a classifier of a known shape."""
    torch.manual_seed(0)
    with device, small_weights():
        return BertForSequenceClassification(_bert_config(shape, num_layers=num_layers))


def llama_1b_config(**changes: Any) -> LlamaConfig:
    """Return the shape of Llama 3.2 1B: 16 layers of 32 query and 8 key-value heads, 64 wide."""
    shape = {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
    return LlamaConfig(**{**shape, **changes})


def llama(config: PreTrainedConfig, *, device: torch.device, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Build a causal model."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device, small_weights():
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


@contextmanager
def small_weights() -> Iterator[None]:
    """Make linear layers and embeddings quickly: uniform numbers as they are drawn, not several times over."""
    fast = lambda tensor, *_, **__: nn.init.uniform_(tensor, -0.03, 0.03)  # noqa: E731
    saved = nn.init.kaiming_uniform_, nn.init.normal_
    nn.init.kaiming_uniform_, nn.init.normal_ = fast, fast
    try:
        yield
    finally:
        nn.init.kaiming_uniform_, nn.init.normal_ = saved


def text_batch(model: PreTrainedModel, batch_size: int, length: int, *, labels: bool = False) -> dict[str, Tensor]:
    """Return random tokens without padding."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, model.config.vocab_size, (batch_size, length), generator=generator).to(model.device)
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return batch | ({"labels": torch.zeros_like(tokens[:, 0])} if labels else {})


def kept_heads(model: nn.Module, share: float, *, seed: int = 0) -> dict[str, list[int]]:
    """Draw which heads to keep: exactly this share of all, unevenly over the layers, a head or more in each."""
    blocks = gating.find_attention_blocks(model)
    generator = torch.Generator().manual_seed(seed)
    total = sum(block.num_heads for block in blocks)
    scores = torch.rand(len(blocks), max(block.num_heads for block in blocks), generator=generator)
    scores.scatter_(1, scores.argmax(dim=1, keepdim=True), 2.0)
    best = scores.flatten().topk(max(len(blocks), round(share * total))).indices.tolist()
    width = scores.shape[1]
    return {block.name: sorted(i % width for i in best if i // width == row) for row, block in enumerate(blocks)}


def compact_copy(model: PreTrainedModel, share: float) -> PreTrainedModel:
    """Return a copy of a model with a share of its heads."""
    twin = type(model)(model.config).to(model.device, model.dtype)
    twin.load_state_dict(model.state_dict())
    kept = kept_heads(twin, share)
    blocks = gating.find_attention_blocks(twin)
    gating.prune_heads(twin, {block.name: set(block.head_ids) - set(kept[block.name]) for block in blocks})
    return twin.train(model.training)
