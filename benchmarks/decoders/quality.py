"""Perplexity of compact decoders on texts, in PyTorch and in llama.cpp."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedModel

from benchmarks.serving.processes import ask_llama_cpp
from gating.data.sources import load_bbc_news
from gating.serving.formats import export_compact

TYPES = ("f16", "q8_0")
_LENGTH, _BLOCKS, _BATCH = 128, 64, 8
# Blocks that llama.cpp scores, token by token.
_SCORED = 8


def make_texts(model: Path, domain: Path) -> dict[str, Tensor]:
    """Return blocks of tokens, ``[blocks, tokens]``, of the domain, and of a general text, which no run trains on."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    articles = load_bbc_news(held_out=0.1).splits["test"]["text"]
    texts = {"domain": domain.read_text(encoding="utf-8"), "general": "\n\n".join(articles)}
    return {name: _blocks(tokenizer(text, verbose=False)["input_ids"]) for name, text in texts.items()}


@torch.inference_mode()
def perplexities(model: PreTrainedModel, texts: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the perplexity on each text."""
    found: dict[str, float] = {}
    for name, blocks in texts.items():
        loss = 0.0
        for batch in blocks.split(_BATCH):
            logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
            loss += float(functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"))
        found[name] = math.exp(loss / blocks[:, 1:].numel())
    return found


def measure_quantized(folder: Path, texts: Mapping[str, Tensor], place: Path, *, name: str) -> Iterator[dict[str, Any]]:
    """Yield a row for each type of weights in llama.cpp: perplexity on some blocks of each text, and megabytes."""
    for dtype in TYPES:
        file = export(folder, place, dtype, name=name)
        row: dict[str, Any] = {"dtype": dtype, "megabytes": file.stat().st_size / 1e6}
        for text, blocks in texts.items():
            scores = ask_llama_cpp("score", [file], blocks[:_SCORED].tolist(), context=2 * _LENGTH, flash=True).value
            known = [score for block in scores for score in block if score is not None]
            row[text] = math.exp(-math.fsum(known) / len(known))
        yield row


def export(folder: Path, place: Path, dtype: str, *, name: str) -> Path:
    """Return the GGUF file of a model, which is written if it is not there."""
    file = place / f"{name.replace(' ', '-')}-{dtype}.gguf"
    if not file.is_file():
        place.mkdir(parents=True, exist_ok=True)
        export_compact(folder, file, format="gguf", dtype=dtype)
    return file


def multiply_accumulates(model: PreTrainedModel) -> int:
    """Return the weights in the matrices of all layers: multiply-accumulates for a token, without the vocabulary."""
    return sum(weight.numel() for name, weight in model.named_parameters() if weight.dim() == 2 and ".layers." in name)


def _blocks(tokens: Sequence[int]) -> Tensor:
    """Return blocks that are spread over a text."""
    blocks = torch.tensor(tokens)[: len(tokens) // _LENGTH * _LENGTH].view(-1, _LENGTH)
    return blocks[torch.linspace(0, len(blocks) - 1, min(_BLOCKS, len(blocks))).long()]
