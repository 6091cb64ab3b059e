"""Folders for vLLM: dense models of transformers where counts allow it, else compact folders with counts per layer.

vLLM sizes the attention and the cache of a layer by ``per_layer_config`` in ``config.json``, and needs a head in every
layer. Read in the source of vLLM 0.33 and tried with 0.32; this package does not run vLLM itself.
"""

import os
import shlex
from contextlib import suppress
from pathlib import Path

from transformers import PreTrainedModel

from gating.compact.files import write_manifest
from gating.compact.save import check_saved, save_compact
from gating.compact.stock import StockError, stock_model
from gating.loader.composing import write_code
from gating.loader.modeling import CONFIG, RECORD_KEY
from gating.loader.saving import compact_copy, write_checksums
from gating.serving.contexts import steady_context
from gating.serving.copies import with_dummy_heads
from gating.serving.decoders import check_layers, sizes_of, write_layer_counts
from gating.serving.exporting import Exportable, exporting, load_processor, megabytes_of
from gating.serving.formats import ServingReport
from gating.storage.files import read_table

# vLLM's own classes of these read the width of a head; others, as Qwen2's, compute it from the number of heads.
_READ_HEAD_DIM = frozenset({"llama", "mistral", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3"})


def export_vllm(
    model_or_directory: Exportable,
    save_path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> ServingReport:
    """Save a decoder as a folder that vLLM serves, and compare the outputs of the folder with those of the model.

    A model that a configuration describes is saved as a dense one. Another one is saved as a compact folder whose
    ``config.json`` has the head counts of each layer, and whose layers without heads have one that does nothing.
    """
    place = Path(save_path)
    with exporting(model_or_directory, place, format="vllm", overwrite=overwrite) as (model, source, folder):
        tokenizer = load_processor(source)
        served = with_dummy_heads(model)
        save_compact(served, folder, tokenizer=tokenizer, verify=False)
        is_stock = RECORD_KEY not in read_table(folder / CONFIG)
        if not is_stock and set(sizes_of(served).num_heads) != {model.config.num_attention_heads}:
            write_layer_counts(served, folder)
            write_code(compact_copy(served), folder, has_layer_counts=True)
            write_checksums(folder)
            write_manifest(folder)
        check_saved(model, folder)
        megabytes = megabytes_of(folder)
    sentences = _describe(model, place, is_stock=is_stock, has_tokenizer=tokenizer is not None)
    return ServingReport(place, megabytes, sentences)


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


def _describe(model: PreTrainedModel, place: Path, *, is_stock: bool, has_tokenizer: bool) -> tuple[str, ...]:
    kind = "A compact model with the head counts of each layer in config.json (per_layer_config)."
    command = f"vllm serve {shlex.quote(str(place))} --model-impl transformers --trust-remote-code"
    command += _context_option(model)
    if is_stock:
        kind = "A dense model of transformers, whose layers all have the same sizes."
        command = serve_stock(model, place)
    sentences = [kind, f"Run it: {command}"]
    if emptied := sizes_of(model).emptied:
        layers = len(sizes_of(model).names)
        sentences.append(f"Layers without heads, {len(emptied)} of {layers}, have one that does nothing.")
    if not has_tokenizer:
        sentences.append("There is no tokenizer in the folder: save yours there, or add --tokenizer NAME.")
    return (*sentences, "transformers loads it with equal outputs; vLLM itself was not run.")
