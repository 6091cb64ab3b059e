"""Folders for vLLM: dense models of transformers where counts allow it, else compact folders with counts per layer.

vLLM sizes the attention and the cache of a layer by ``per_layer_config`` in ``config.json``, and needs a head in every
layer. Read in the source of vLLM 0.33 and tried with 0.32; this package does not run vLLM itself.
"""

import json
import os
import shlex
import shutil
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from transformers import PreTrainedModel

from gating.compact.decoders import check_layers, sizes_of
from gating.compact.save import check_saved, save_compact
from gating.compact.stock import StockError, stock_model
from gating.loader.checksums import CONFIG, RECORD_KEY
from gating.serving.contexts import steady_context
from gating.serving.dummy_heads import with_dummy_heads
from gating.serving.exporting import Exportable, exporting, megabytes_of
from gating.serving.formats import ServingReport
from gating.storage.files import read_table
from gating.storage.hub import MODEL_FILES

__all__ = ["check_vllm", "export_vllm", "serve_stock"]

# vLLM's own classes of these read the width of a head; others, as Qwen2's, compute it from the number of heads.
_READ_HEAD_DIM = frozenset({"llama", "mistral", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3"})

_OF_THE_MODEL = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json")

# Only this file beside the model tells the folder from that of any compact model.
_MARK, _MARKED = "export.json", {"export_format": "vllm"}


def export_vllm(
    model_or_directory: Exportable,
    save_path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> ServingReport:
    """Save a decoder as a folder that vLLM serves, and compare the outputs of the folder with those of the model.

    A model that a configuration describes is saved as a dense one. Another one is saved as a compact folder whose
    ``config.json`` has the head counts of each layer, and whose layers without heads have one that does nothing. The
    tokenizer in a folder is copied. Arguments and errors are those of :func:`~gating.serving.formats.export_compact`.
    """
    place = Path(save_path)
    with exporting(model_or_directory, place, format="vllm", overwrite=overwrite) as opened:
        model, source, folder = opened
        save_compact(with_dummy_heads(model), folder, verify=False)
        is_stock = RECORD_KEY not in read_table(folder / CONFIG)
        (folder / _MARK).write_text(json.dumps(_MARKED) + "\n", encoding="utf-8")
        has_tokenizer = source is not None and _copy_tokenizer(source, folder)
        check_saved(model, folder)
        megabytes = megabytes_of(folder)
    return ServingReport(place, megabytes, _describe(model, place, is_stock=is_stock, has_tokenizer=has_tokenizer))


def serve_stock(model: PreTrainedModel, folder: Path) -> str:
    """Return the command that serves a stock folder of a compact model."""
    sizes = sizes_of(model)
    computes = model.config.hidden_size // sizes.num_heads[0] == sizes.head_dim
    is_native = computes or model.config.model_type in _READ_HEAD_DIM
    options = ["" if is_native else " --model-impl transformers", _context_option(model)]
    return f"vllm serve {shlex.quote(str(folder))}{''.join(options)}"


def _context_option(model: PreTrainedModel) -> str:
    """Return the option that ends texts where rotary embeddings would change for tokens that are in the cache."""
    steady = steady_context(model.config)
    return "" if steady is None else f" --max-model-len {steady}"


def check_vllm(model: PreTrainedModel) -> None:
    """Raise ``ValueError`` with the reason for which vLLM cannot serve a model."""
    if sizes_of(model).is_even:
        with suppress(StockError):
            stock_model(model)
            return
    check_layers(model)


def _copy_tokenizer(source: Path, folder: Path) -> bool:
    """Copy the files of a tokenizer or processor; return whether there are any."""
    found = False
    for path in source.rglob("*"):
        name = path.relative_to(source).as_posix()
        is_other = any(fnmatchcase(name, pattern) for pattern in _OF_THE_MODEL)
        if path.is_file() and not is_other and any(fnmatchcase(name, pattern) for pattern in MODEL_FILES):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / name)
            found = True
    return found


def _describe(model: PreTrainedModel, place: Path, *, is_stock: bool, has_tokenizer: bool) -> tuple[str, ...]:
    sizes, sentences = sizes_of(model), []
    if is_stock:
        sentences += [
            "A dense model of transformers, whose layers all have the same sizes.",
            f"Run it: {serve_stock(model, place)}",
        ]
    else:
        sentences += [
            "A compact model with the head counts of each layer in config.json (per_layer_config).",
            f"Run it: vllm serve {shlex.quote(str(place))} --model-impl transformers --trust-remote-code"
            + _context_option(model),
        ]
    if sizes.emptied:
        emptied, layers = len(sizes.emptied), len(sizes.names)
        sentences.append(f"Layers without heads, {emptied} of {layers}, have one that does nothing.")
    if not has_tokenizer:
        sentences.append("There is no tokenizer in the folder: save yours there, or add --tokenizer NAME.")
    return (*sentences, "transformers loads it with equal outputs; vLLM itself was not run.")
