"""Tiny decoders for the tests of serving runtimes, trained for some steps, with heads and neurons removed."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

import gating
from tests.support.family_models import GROUPED

__all__ = ["GROUP", "SIZES", "make_decoder", "make_tokenizer", "needs_layers", "remove", "write_greedily"]

SIZES: dict[str, Any] = {
    **GROUPED,
    "vocab_size": 263,
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "head_dim": 24,
    "intermediate_size": 80,
    "max_position_embeddings": 128,
}
GROUP = 16


def make_decoder(family: str, *, seed: int = 0, steps: int = 10, **settings: Any) -> PreTrainedModel:
    """Return a small decoder that was trained for some steps, so that its parts differ from their initial values.

    Args:
        family: Prefix of its classes, such as ``Llama``.
        seed: Seed of weights and data.
        steps: Number of steps.
        settings: Values of the configuration other than those of ``SIZES``.
    """
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **settings})
    model: PreTrainedModel = getattr(transformers, f"{family}ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter) * (1.0 if "norm" not in name else 0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    tokens = torch.randint(3, config.vocab_size, (8, 20))
    for _ in range(steps):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def remove(model: PreTrainedModel, groups: dict[int, list[int]], neurons: dict[int, list[int]] | None = None) -> None:
    """Remove all heads of key-value groups, and groups of 16 neurons, by layer."""
    size = model.config.num_attention_heads // model.config.num_key_value_heads
    heads = {layer: [group * size + i for group in gone for i in range(size)] for layer, gone in groups.items()}
    gating.prune_heads(model, heads)
    if neurons:
        gating.prune_neurons(model, neurons, group_size=GROUP)


@torch.inference_mode()
def write_greedily(model: PreTrainedModel, prompt: Sequence[int], count: int) -> list[int]:
    """Return the tokens with the largest logits, one after another, also after a token that ends texts."""
    tokens = torch.tensor([list(prompt)], device=model.device)
    for _ in range(count):
        logits = model(input_ids=tokens, use_cache=False).logits
        tokens = torch.cat([tokens, logits[:, -1:].argmax(dim=-1)], dim=1)
    return tokens[0, len(prompt) :].tolist()


def make_tokenizer(*, regex: str | None = None, vocab_size: int = 263) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer, which cuts texts as GPT-2 does or by a regular expression."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None)
    split = [] if regex is None else [pre_tokenizers.Split(Regex(regex), "isolated", invert=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level]) if split else byte_level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat is in the hat, and there it sits"] * 5, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def needs_layers() -> None:
    """Skip a test where transformers has no configurations of different layers, which vLLM's own version has."""
    if not hasattr(PreTrainedConfig, "is_heterogeneous"):
        pytest.skip(f"transformers {transformers.__version__} reads no per_layer_config")
