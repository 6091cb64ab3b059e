"""Names that pages about a part of a program take as given, as tiny objects, by page."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import gating
from tests.support.tiny_run import make_model_folder


def texts() -> dict[str, Any]:
    """Write the compact folder of a language model with its tokenizer."""
    folder = make_model_folder(Path("model"))
    torch.manual_seed(0)
    writer = GPT2LMHeadModel(GPT2Config(vocab_size=45, n_positions=64, n_embd=16, n_layer=2, n_head=2))
    gating.prune_heads(writer, {0: [1]})
    gating.save_compact(writer, "compact", tokenizer=AutoTokenizer.from_pretrained(folder))
    return {}


def families() -> dict[str, Any]:
    """Return the package."""
    return {"gating": gating}


SETUPS: dict[str, Callable[[], dict[str, Any]]] = {
    "howto/texts.md": texts,
    "families.md": families,
    "architecture.md": families,
}
