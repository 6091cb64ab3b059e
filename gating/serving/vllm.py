"""Folders for vLLM: dense models of transformers where counts allow it, else compact folders with counts per layer.

vLLM sizes the attention and the cache of a layer by ``per_layer_config`` in ``config.json``, and needs a head in every
layer. Read in the source of vLLM 0.33 and tried with 0.32; this package does not run vLLM itself.
"""

import json
import os
import re
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

from transformers import PreTrainedModel

from gating.compact.save import save_compact
from gating.compact.stock import StockError, stock_model
from gating.compact.verify import check_saved
from gating.errors import InputError
from gating.serving.decoders import DecoderSizes, load_decoder, sizes_of
from gating.serving.formats import ServingReport
from gating.serving.silent import with_silent_groups
from gating.storage.folders import check_replaceable, replacing_folder
from gating.storage.results import COMPACT_MODEL, MODEL_FILES
from gating.structure.blocks import iter_attention_blocks
from gating.structure.feed_forward import ExpertsBlock, iter_feed_forward_blocks
from gating.structure.integrity import CONFIG, check_finite, write_checksums

__all__ = ["check_vllm", "export_vllm"]

_OF_THE_MODEL = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json")


def export_vllm(
    model_or_directory: PreTrainedModel | str | os.PathLike[str],
    save_path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> ServingReport:
    """Save a decoder as a folder that vLLM serves, and compare the outputs of the folder with those of the model.

    A model that a configuration describes is saved as a dense one. Another one is saved as a compact folder whose
    ``config.json`` has the head counts of each layer, and whose layers without heads have one that does nothing.

    Args:
        model_or_directory: A decoder, its folder, or its name on the hub; the tokenizer in a folder is copied.
        save_path: The folder; it is written whole or not at all.
        overwrite: Whether the folder of an earlier model of this package may be replaced.

    Returns:
        The folder, with the command that serves it.

    Raises:
        ValueError: The model is no decoder of text, or of a family whose uneven layers vLLM does not run.
        FileExistsError: The folder is not empty and ``overwrite`` is false, or it is not one of this package.
    """
    place, given = Path(save_path), model_or_directory
    keep = [given.name_or_path if isinstance(given, PreTrainedModel) else given]
    # Before the model is loaded, too.
    check_replaceable(place, overwrite=overwrite, kind=COMPACT_MODEL, keep=keep)
    model, source = load_decoder(given)
    sizes = sizes_of(model)
    check_finite(model, type(model).__name__)
    with replacing_folder(place, overwrite=overwrite, kind=COMPACT_MODEL, keep=keep) as folder:
        is_stock = _save(model, folder, sizes)
        has_tokenizer = source is not None and _copy_tokenizer(source, folder)
        check_saved(model, folder)
        megabytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    return ServingReport(place, megabytes, _describe(place, sizes, is_stock=is_stock, has_tokenizer=has_tokenizer))


def check_vllm(model: PreTrainedModel) -> None:
    """Raise ``ValueError`` with the reason for which vLLM cannot serve a model."""
    if sizes_of(model).is_even:
        try:
            stock_model(model)
        except StockError:
            _check_layers(model)
    else:
        _check_layers(model)


def _save(model: PreTrainedModel, folder: Path, sizes: DecoderSizes) -> bool:
    """Save a model in the form that vLLM reads; return whether it is a dense model."""
    if sizes.is_even:
        try:
            save_compact(model, folder, stock=True, verify=False)
        except StockError:
            pass
        else:
            return True
    _check_layers(model)
    filled = with_silent_groups(model)
    save_compact(filled, folder, stock=False, verify=False)
    path = folder / CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"allow_global_per_layer_attribute_access": True, "per_layer_config": _counts(filled)}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_checksums(folder)
    return False


def _counts(model: PreTrainedModel) -> dict[str, dict[str, int]]:
    """Return ``per_layer_config``: the sizes of each layer, by the names that the configuration has for them."""
    sizes, config = sizes_of(model), model.config
    digits = len(str(len(sizes.names) - 1))
    layers = {}
    for layer, (heads, groups) in enumerate(zip(sizes.num_heads, sizes.num_key_value_heads, strict=True)):
        known = {"num_attention_heads": heads, "num_key_value_heads": groups, "num_kv_heads": groups}
        counts = {name: count for name, count in known.items() if hasattr(config, name)}
        if getattr(config, "head_dim", None) is None:
            # It would be computed from the number of heads of the layer.
            counts["head_dim"] = sizes.head_dim
        layers[str(layer).zfill(digits)] = counts
    return layers


def _check_layers(model: PreTrainedModel) -> None:
    """Raise ``ValueError`` unless vLLM's backend for models of transformers can run the layers of a compact model."""
    reason = ""
    if not getattr(model, "_supports_attention_backend", False):
        reason = "its class does not let a runtime compute the attention (_supports_attention_backend)"
    elif getattr(model.config, "is_heterogeneous", False):
        reason = "its configuration has a per_layer_config of its own"
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    if lost := [name for name in model.state_dict() if any(re.search(pattern, name) for pattern in ignored)]:
        reason = reason or f"vLLM leaves out {lost[0]}, as its class ignores such names in checkpoints"
    for block in iter_attention_blocks(model):
        if block.spec.keeps_key_value_heads:
            reason = reason or f"{block.name} shares keys and values with other layers"
        if any(layout == "hkv" for _, layout in block.projections()):
            reason = reason or f"{block.name} caches a latent, for which vLLM has one size for all layers"
    for feed_forward in iter_feed_forward_blocks(model):
        if isinstance(feed_forward, ExpertsBlock) and feed_forward.num_neurons != feed_forward.width_before:
            reason = reason or f"{feed_forward.name} has experts with fewer neurons than the configuration"
    if reason:
        raise InputError(f"{type(model).__name__} does not run in vLLM with other heads in each layer: {reason}.")


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


def _describe(place: Path, sizes: DecoderSizes, *, is_stock: bool, has_tokenizer: bool) -> tuple[str, ...]:
    sentences = []
    if is_stock:
        sentences += [
            "A dense model of transformers, whose layers all have the same sizes.",
            f"Run it: vllm serve {place}",
        ]
    else:
        sentences += [
            "A compact model with the head counts of each layer in config.json (per_layer_config).",
            f"Run it: vllm serve {place} --model-impl transformers --trust-remote-code",
        ]
    if sizes.emptied:
        emptied, layers = len(sizes.emptied), len(sizes.names)
        sentences.append(f"Layers without heads, {emptied} of {layers}, have one that does nothing.")
    if not has_tokenizer:
        sentences.append("There is no tokenizer in the folder: save yours there, or add --tokenizer NAME.")
    return (*sentences, "transformers loads it with equal outputs; vLLM itself was not run.")
