"""The models and the heads to remove from them."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

__all__ = ["CASES", "MODELS", "Heads", "Subject", "heads_to_remove", "make_subject"]

Heads = dict[int, list[int]]
MODELS = ("bert-base", "vit-base")
SMALL = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 128}
# Of the size that makes attention matter in the outputs; with the 0.02 of the configurations, all the heads of a random
# model together change the third digit.
STD = 0.05


@dataclass(frozen=True)
class Subject:
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
    """Build a model with random weights, in evaluation mode, and a batch.

    Args:
        name: One of :data:`MODELS`.
        batch_size: Number of examples.
        length: Number of tokens of each; images are as large as the model wants them.
        small: Whether to make the model small, to see that everything runs.
    """
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


def _even(num_layers: int, num_heads: int) -> list[int]:
    return [num_heads // 2] * num_layers


def _uneven(num_layers: int, num_heads: int) -> list[int]:
    # From one to all but one.
    return [1 + 2 * layer % (num_heads - 1) for layer in range(num_layers)]


def _emptied(num_layers: int, num_heads: int) -> list[int]:
    counts = _even(num_layers, num_heads)
    counts[num_layers // 2] = num_heads
    return counts


def _few_left(num_layers: int, num_heads: int) -> list[int]:
    # One stays in each layer, another in each second one: 18 of 144. No layer is emptied; that is a case of its own.
    return [num_heads - 1 - layer % 2 for layer in range(num_layers)]


# Name -> how many heads each layer loses, from the number of layers and of heads in a layer.
CASES: dict[str, Callable[[int, int], list[int]]] = {
    "half of every layer": _even,
    "uneven": _uneven,
    "one layer emptied": _emptied,
    "an eighth left": _few_left,
}
