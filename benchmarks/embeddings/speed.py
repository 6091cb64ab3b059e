"""Sentences per second of embedding models, in turns."""

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from benchmarks.embeddings.lines import PYTORCH, SIZES
from benchmarks.measuring import interleave, ratio

# Name and runtime of a model.
Key = tuple[str, str]


def measure_speed(
    models: Mapping[Key, SentenceTransformer],
    *,
    sizes: Sequence[tuple[int, int]] = SIZES,
    vocabulary: int = 20_000,
    budget_s: float = 40,
) -> dict[Key, dict[str, Any]]:
    """Time models on batches without padding, and return their sentences per second and speed-ups.

    Args:
        models: Models by name and runtime, among them ``("dense", "PyTorch")``.
        sizes: Texts of a batch, and tokens of each.
        vocabulary: Number of tokens to draw from.
        budget_s: Seconds for a size, after which no new round begins.

    Returns:
        For each model and size the sentences per second (``per_second_32x32``), and the median and quartiles of the
        speed-up over the dense model in PyTorch (``over_pytorch_32x32``), and over it in the same runtime where that
        is among the models (``over_dense_32x32``).
    """
    speeds: dict[Key, dict[str, Any]] = {key: {} for key in models}
    for rows, length in sizes:
        tokens = torch.randint(5, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
        batch = {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "token_type_ids": torch.zeros_like(tokens),
        }
        calls = {str(key): partial(_embed, model, batch) for key, model in models.items()}
        times = interleave(calls, rounds=200 if rows == 1 else 30, warm_up=2, budget_s=budget_s)
        for key in models:
            size, dense = f"{rows}x{length}", ("dense", key[1])
            own = speeds[key]
            own[f"per_second_{size}"] = rows / statistics.median(times[str(key)])
            own[f"over_pytorch_{size}"] = ratio(times, str(("dense", PYTORCH)), str(key))
            if dense in models:
                own[f"over_dense_{size}"] = ratio(times, str(dense), str(key))
    return speeds


@torch.inference_mode()
def _embed(model: SentenceTransformer, batch: Mapping[str, Tensor]) -> Tensor:
    embeddings: Tensor = model(dict(batch))["sentence_embedding"]
    return embeddings
