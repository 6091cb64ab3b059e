"""Greedy tokens of tiny decoders in each runtime, compared with those of the model in PyTorch."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from benchmarks.serving.models import FAMILIES, PATTERNS, make_case
from benchmarks.serving.processes import ask
from benchmarks.serving.runtimes import RUNTIMES, export, missing_package
from gating.compact.save import save_compact
from gating.errors import InputError, shorten
from gating.serving.decoders import sizes_of
from gating.serving.gguf.architectures import find_architecture
from gating.serving.greedy import check_tokens, make_prompts

__all__ = ["measure_tokens"]

Row = dict[str, Any]

_STEPS = 20


def measure_tokens(*, quick: bool = False) -> Iterator[Row]:
    """Yield a row for each family, pattern and runtime: the tokens that are the model's own, or why there are none.

    Args:
        quick: Whether few families are measured.
    """
    available = [name for name in RUNTIMES if missing_package(RUNTIMES[name]) is None]
    with tempfile.TemporaryDirectory(prefix="head-gating-serving-") as name:
        folders: list[tuple[Row, PreTrainedModel, Path]] = []
        for family in ("LLaMA", "GPT-2") if quick else FAMILIES:
            for pattern in PATTERNS[1:2] if quick else PATTERNS:
                model = make_case(family, pattern, steps=2 if quick else _STEPS)
                about = {"family": family, "pattern": pattern, **_sizes(model)}
                for runtime in available:
                    if pattern in (RUNTIMES[runtime].patterns or PATTERNS):
                        yield {"runtime": runtime, **about, **_measure(model, runtime, Path(name) / "export")}
                folders.append((about, model, save_compact(model, Path(name) / str(len(folders)))))
        yield from _measure_folders(folders)


def _measure_folders(folders: Sequence[tuple[Row, PreTrainedModel, Path]]) -> Iterator[Row]:
    """Yield a row for each folder, which a process without this package loads with transformers."""
    prompts = [make_prompts(model) for _, model, _ in folders]
    tasks = [[str(folder), *given] for (_, _, folder), given in zip(folders, prompts, strict=True)]
    answers = ask("plain_transformers", tasks).value
    for (about, model, folder), (given, _), written in zip(folders, prompts, answers, strict=True):
        is_stock = "auto_map" not in json.loads((folder / "config.json").read_text())
        result = {"failed": written} if isinstance(written, str) else _compare(model, given, written, "transformers")
        yield {"runtime": "transformers", **about, "stock": is_stock, **result}


def _sizes(model: PreTrainedModel) -> Row:
    sizes = sizes_of(model)
    return {
        "heads": list(sizes.num_heads),
        "groups": list(sizes.num_key_value_heads),
        "neurons": list(sizes.num_neurons),
    }


def _measure(model: PreTrainedModel, name: str, place: Path) -> Row:
    """Return the number of greedy tokens and of those that the model would have written; or a reason."""
    runtime = RUNTIMES[name]
    prompts, count = make_prompts(model)
    try:
        export(model, runtime, place)
        written = runtime.write(place, prompts, count)
    except InputError as error:
        return {"refused": str(error)}
    except Exception as error:
        return {"failed": shorten(f"{type(error).__name__}: {error}", most=500)}
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if place.is_file():
            place.unlink()
    compared = _compare(model, prompts, written, name)
    return compared | ({"architecture": find_architecture(model).name} if runtime.format == "gguf" else {})


def _compare(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]], name: str
) -> Row:
    # Texts go on after their end, so that this token is not written.
    checked = check_tokens(model, prompts, written, never_written=_ends(model), tolerance=None, runtime=name)
    return {"tokens": checked.num_tokens, "equal": checked.num_equal, "largest_gap": checked.largest_gap}


def _ends(model: PreTrainedModel) -> list[int]:
    end = model.config.eos_token_id
    return [] if end is None else [end]
