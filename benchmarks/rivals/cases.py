"""The models and the heads to remove from them."""

import random
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

Heads = dict[int, list[int]]
MODELS = ("bert-base", "vit-base")
SMALL = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 128}
# Of the size that makes attention matter in the outputs; with the 0.02 of the configurations, all the heads of a random
# model together change the third digit.
STD = 0.05


class Subject(NamedTuple):
    """A model and a batch for it."""

    name: str
    model: PreTrainedModel
    batch: dict[str, Tensor]

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return int(self.model.config.num_hidden_layers)

    @property
    def num_heads(self) -> int:
        """Number of heads in a layer."""
        return int(self.model.config.num_attention_heads)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return int(self.model.config.hidden_size) // self.num_heads


def make_subject(name: str, *, batch_size: int, length: int, small: bool) -> Subject:
    """Build a model with random weights, in evaluation mode, and a batch; images have the model's size."""
    torch.manual_seed(0)
    shape = {**(SMALL if small else {}), "initializer_range": STD}
    if name == "bert-base":
        model: PreTrainedModel = BertForSequenceClassification(BertConfig(**shape))
        tokens = torch.randint(1, model.config.vocab_size, (batch_size, length))
        return Subject(name, model.eval(), {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
    model = ViTForImageClassification(ViTConfig(**shape, **({"image_size": 32} if small else {})))
    size = model.config.image_size
    return Subject(name, model.eval(), {"pixel_values": torch.randn(batch_size, 3, size, size)})


def heads_to_remove(case: str, subject: Subject) -> Heads:
    """Draw the heads that a case removes; the same at every call."""
    generator = random.Random(0)
    counts = CASES[case](subject.num_layers, subject.num_heads)
    return {layer: sorted(generator.sample(range(subject.num_heads), count)) for layer, count in enumerate(counts)}


# Name -> how many heads each layer loses, from the number of layers and of heads in a layer.
CASES: dict[str, Callable[[int, int], list[int]]] = {
    "half of every layer": lambda layers, heads: [heads // 2] * layers,
    # From one to all but one.
    "uneven": lambda layers, heads: [1 + 2 * layer % (heads - 1) for layer in range(layers)],
    "one layer emptied": lambda layers, heads: [
        heads if layer == layers // 2 else heads // 2 for layer in range(layers)
    ],
    # One stays in each layer, another in each second one: 18 of 144. No layer is emptied; that is a case of its own.
    "an eighth left": lambda layers, heads: [heads - 1 - layer % 2 for layer in range(layers)],
}
