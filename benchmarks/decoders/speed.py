"""Tokens per second of compact decoders in llama.cpp, as ratios to the dense model with weights of the same type."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.decoders.quality import TYPES, export
from benchmarks.measuring import ratio
from benchmarks.serving.cache import bytes_in_transformers
from benchmarks.serving.processes import ask_llama_cpp
from gating.compact.load import load_compact

__all__ = ["measure_speed"]

# Tokens of the prompt and those written after it, and measurements.
_PROMPT, _WRITTEN, _ROUNDS = 256, 64, 9


def measure_speed(folders: Mapping[str, Path], place: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each model but the first, the dense one, and each type of weights.

    Args:
        folders: Folders of the models by name.
        place: Folder for the files, which stay there.
    """
    # Keys and values in half precision, of models in single.
    caches = [round(bytes_in_transformers(load_compact(folder)) / 2) for folder in folders.values()]
    for dtype in TYPES:
        files = [export(folder, place, dtype, name=name) for name, folder in folders.items()]
        prompt = torch.randint(100, 40000, (_PROMPT,), generator=torch.Generator().manual_seed(0)).tolist()
        speeds = ask_llama_cpp(
            "time", files, [prompt], context=2 * _PROMPT, count=_WRITTEN, rounds=_ROUNDS, flash=True
        ).value
        for number, name in list(enumerate(folders))[1:]:
            columns = {
                kind: {"own": [row[number] for row in values], "dense": [row[0] for row in values]}
                for kind, values in speeds.items()
            }
            yield {
                "run": name,
                "dtype": dtype,
                **{kind: ratio(values, "own", "dense") for kind, values in columns.items()},
                "cache_bytes": caches[number],
                "dense_cache_bytes": caches[0],
                "megabytes": files[number].stat().st_size / 1e6,
                "dense_megabytes": files[0].stat().st_size / 1e6,
            }
