"""Random LLaMA-like models of growing size, saved once and loaded by every process."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.speed.shapes import llama
from gating.models.meta_model import make_meta_model
from gating.models.sources import Pretrained

HEAD_WIDTH, VOCABULARY = 64, 4096


def save(folder: Path, hidden: int, layers: int) -> None:
    """Save a random model; with a width of 2048 and 22 layers, it has the shape of TinyLlama 1.1B, but few tokens."""
    heads = hidden // HEAD_WIDTH
    config = LlamaConfig(
        hidden_size=hidden,
        # A multiple of 64 near TinyLlama's 5632 / 2048 of the width.
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 8),
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
    )
    llama(config, device=torch.device("cpu")).save_pretrained(folder)


def load_sharded(folder: str) -> PreTrainedModel:
    """Return a saved model cut over all processes."""
    source = Pretrained(folder)
    return source.load_sharded(AutoModelForCausalLM, make_meta_model(source, AutoModelForCausalLM))


def load_whole(folder: str, device: torch.device) -> PreTrainedModel:
    """Return a saved model, whole in this process."""
    model: PreTrainedModel = Pretrained(folder).load(AutoModelForCausalLM).to(device)
    return model


def batch_of(
    model: PreTrainedModel, batch_size: int, length: int, device: torch.device, *, seed: int
) -> dict[str, Tensor]:
    """Return random tokens, which are their own labels."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, model.config.vocab_size, (batch_size, length), generator=generator).to(device)
    return {"input_ids": tokens, "labels": tokens}


def layer_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of the parameters of one layer, whole."""
    return whole_bytes(model.model.layers[0].parameters())


def whole_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors, of those that are cut in all processes together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def weights(model: PreTrainedModel) -> Iterator[Tensor]:
    """Yield the parameters of a model, without its gates."""
    gates = {id(parameter) for parameter in gate_parameters(model)}
    return (parameter for parameter in model.parameters() if id(parameter) not in gates)


def gate_parameters(model: PreTrainedModel) -> list[Tensor]:
    """Return the parameters of the gates of a model."""
    return list(model.head_gates.parameters()) if hasattr(model, "head_gates") else []
