"""Models of well-known shapes with random weights, inputs for them, and heads to keep."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import gating
from benchmarks.measuring import interleave, ratio

Row = dict[str, Any]
Times = dict[str, list[float]]

BERT_SHAPES = {
    # Hidden width, layers, heads, width of the feed-forward layer.
    "minilm": (384, 6, 12, 1536),
    "bert-base": (768, 12, 12, 3072),
    "tiny": (64, 2, 4, 128),
}


# Llama 3.2 1B: 16 layers of 32 query and 8 key-value heads, 64 wide.
LLAMA_1B = {
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
_TINY_LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "vocab_size": 1000,
}


class Bench(NamedTuple):
    """Where is measured: the device, and whether with tiny models for a second, to see that everything runs."""

    device: torch.device
    quick: bool

    def name(self, shape: str) -> str:
        """Return the name of a shape, which is tiny in the quick form."""
        return "tiny" if self.quick else shape

    def some(self, cases: list[Any], quick: Any) -> list[Any]:
        """Return the cases, or the one of the quick form."""
        return [quick] if self.quick else cases

    def bert(self, shape: str, *, num_layers: int | None = None) -> BertForSequenceClassification:
        """Build a classifier of a known shape."""
        return bert(self.name(shape), num_layers=num_layers, device=self.device)

    def llama(self, **changes: Any) -> PreTrainedModel:
        """Build a decoder with changes of :data:`LLAMA_1B`."""
        config = LlamaConfig(**{**LLAMA_1B, **changes, **(_TINY_LLAMA if self.quick else {})})
        return llama(config, device=self.device)

    def times(
        self, calls: Mapping[str, Callable[[], object]], *, rounds: int, seconds: float, warm_up: int = 1
    ) -> Times:
        """Time callables in turns."""
        return interleave(calls, rounds=rounds, warm_up=warm_up, budget_s=1 if self.quick else seconds)

    def forward_times(
        self, models: Mapping[str, nn.Module], batch: dict[str, Tensor], *, rounds: int, seconds: float
    ) -> Times:
        """Time forward passes of models in turns."""
        calls = {name: partial(_forward, model, batch) for name, model in models.items()}
        return self.times(calls, rounds=rounds, seconds=seconds)


def row(what: str, case: str, times: Times, name: str, base: str, at_most: float | None = None, **more: Any) -> Row:
    """Return a result: the time of one callable over that of another, and its goal if there is one."""
    goal = {} if at_most is None else {"at_most": at_most}
    return {"what": what, "case": case, "ratio": ratio(times, name, base), **goal, **more}


@torch.inference_mode()
def _forward(model: nn.Module, batch: dict[str, Tensor]) -> None:
    model(**batch)


def bert(shape: str, *, num_layers: int | None = None, device: torch.device) -> BertForSequenceClassification:
    """Build a classifier of a known shape."""
    hidden, layers, heads, intermediate = BERT_SHAPES[shape]
    config = BertConfig(
        hidden_size=hidden,
        num_hidden_layers=num_layers or layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        vocab_size=1000 if shape == "tiny" else 30522,
    )
    torch.manual_seed(0)
    with device, small_weights():
        return BertForSequenceClassification(config)


def llama(config: LlamaConfig, *, device: torch.device, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
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


def without_neurons(model: PreTrainedModel, share: float) -> PreTrainedModel:
    """Remove groups of neurons, unevenly over the layers, in place."""
    generator = torch.Generator().manual_seed(0)
    removed = {}
    for block in gating.find_feed_forward_blocks(model, group_size=16):
        number = len(block.group_ids)
        most = 1 - share + 0.2 * (float(torch.rand((), generator=generator)) - 0.5)
        order = torch.randperm(number, generator=generator).tolist()
        removed[block.name] = order[: min(number - 1, round(most * number))]
    gating.prune_neurons(model, removed, group_size=16)
    return model
