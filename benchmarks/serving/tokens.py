"""Greedy tokens of tiny decoders in each runtime, compared with those of the model in PyTorch."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from benchmarks.serving.models import FAMILIES, PATTERNS, make_case
from benchmarks.serving.processes import ask
from benchmarks.serving.runtimes import RUNTIMES, missing_package
from gating.compact.save import save_compact
from gating.errors import InputError, shorten
from gating.serving.decoders import sizes_of
from gating.serving.formats import export_compact
from gating.serving.gguf.architectures import find_architecture
from gating.serving.greedy import check_tokens, make_prompts

__all__ = ["measure_tokens", "measure_vllm"]

Row = dict[str, Any]

_STEPS = 20
# The least width of a head that vLLM has on the CPU.
_VLLM_WIDTH = 32


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
        compared = partial(_compare, model, given, never_written=_ends(model), name="transformers")
        result = {"failed": shorten(written, most=500)} if isinstance(written, str) else compared(written=written)
        yield {"runtime": "transformers", **about, "stock": is_stock, **result}


def measure_vllm(python: str) -> Iterator[Row]:
    """Yield a row for each family, with even and with uneven layers, in vLLM on the CPU.

    Args:
        python: Interpreter of an environment with vLLM.
    """
    with tempfile.TemporaryDirectory(prefix="head-gating-serving-") as name:
        cases: list[tuple[Row, PreTrainedModel, Path]] = []
        for family in FAMILIES:
            for pattern in ("even", "emptied"):
                model = make_case(family, pattern, steps=_STEPS, width=_VLLM_WIDTH)
                about = {"runtime": "vLLM", "family": family, "pattern": pattern, **_sizes(model)}
                place = Path(name) / str(len(cases))
                try:
                    export_compact(model, place, format="vllm")
                except InputError as error:
                    yield {**about, "refused": str(error)}
                else:
                    cases.append((about, model, place))
        prompts = [make_prompts(model) for _, model, _ in cases]
        is_stock = ["per_layer_config" not in json.loads((place / "config.json").read_text()) for *_, place in cases]
        tasks = [[str(case[2]), *given, stock] for case, given, stock in zip(cases, prompts, is_stock, strict=True)]
        answer = ask("vllm_tokens", tasks, python=python).value
    for (about, model, _), (given, _), stock, written in zip(cases, prompts, is_stock, answer["written"], strict=True):
        failed = isinstance(written, str)
        result = {"failed": shorten(written, most=500)} if failed else _compare(model, given, written, [], "vLLM")
        yield {**about, "stock": stock, "vllm": answer["version"], **result}


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
        export_compact(model, place, format=runtime.format, **runtime.options)
        written = runtime.write(place, prompts, count)
        never_written = _ends_of_file(place) if runtime.format == "gguf" else []
    except InputError as error:
        return {"refused": str(error)}
    except Exception as error:
        return {"failed": shorten(f"{type(error).__name__}: {error}", most=500)}
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if place.is_file():
            place.unlink()
    compared = _compare(model, prompts, written, never_written, name)
    return compared | ({"architecture": find_architecture(model).name} if runtime.format == "gguf" else {})


def _compare(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    written: Sequence[Sequence[int]],
    never_written: Sequence[int],
    name: str,
) -> Row:
    checked = check_tokens(model, prompts, written, never_written=never_written, tolerance=None, runtime=name)
    return {"tokens": checked.num_tokens, "equal": checked.num_equal, "largest_gap": checked.largest_gap}


def _ends(model: PreTrainedModel) -> list[int]:
    """Return the tokens that end a text, which runtimes leave out so that it goes on."""
    end = model.config.eos_token_id
    return [] if end is None else [end]


def _ends_of_file(place: Path) -> list[int]:
    # The package gguf may not be installed.
    from gating.serving.gguf.tokenizer import tokens_never_written

    return tokens_never_written(place)
