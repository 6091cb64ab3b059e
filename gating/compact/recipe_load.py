"""Compact models that are built from their base by a recipe, and proven to be those that were saved."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from gating.compact.files import check_file, damaged_file, read_config
from gating.compact.limits import check_trust, checked_folder, model_class, without_load_report
from gating.compact.manifest import check_manifest, digest_stored, digest_tensors
from gating.compact.recipe import Recipe, find_base
from gating.errors import InputError, RemedyError, loading
from gating.loader.checksums import CONFIG, GENERATION, PLAIN_LOADING, RECORD_KEY
from gating.loader.integrity import check_finite
from gating.loader.modeling import base_prefix
from gating.loader.record import LAYERS_KEY, SPEC_NOTES, dense_config
from gating.loader.record_checks import check_record
from gating.loader.saving import become_compact
from gating.pruning.layer_settings import changed
from gating.pruning.layers import drop_layers
from gating.pruning.plan import plan_finalizing
from gating.structure.attention import iter_attention_blocks
from gating.structure.blocks import Block
from gating.structure.edits import apply_edits
from gating.structure.feed_forward import iter_feed_forward_blocks
from gating.structure.layers import dense_name, find_layer_lists

__all__ = ["build_compact", "digest_model", "load_base", "load_recipe"]


def load_recipe(
    folder: Path,
    *,
    base: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    verify: bool = True,
) -> PreTrainedModel:
    """Build the compact model of a recipe; the arguments and errors are those of ``load_compact``.

    With ``verify``, the files of the folder, the weights of the base and those of the result are compared with their
    checksums.
    """
    described = read_config(folder)
    if verify:
        check_manifest(folder)
    recipe = Recipe.read(folder)
    name, revision = (recipe.base, recipe.revision) if base is None else (os.fspath(base), None)
    place = find_base(name, revision=revision, token=token, cache_dir=cache_dir)
    if verify and recipe.base_sha256 != digest_stored(place):
        raise RemedyError(
            f"The weights in {place} are not those of the base model of this recipe, {recipe.title}. Bring back the "
            "base that the recipe was made from",
            python=", or name it with base=...",
            command=".",
        )
    model, lacking = load_base(place, folder, described)
    if lost := sorted(lacking - set(recipe.new)):
        raise damaged_file(folder, f"{lost[0]} is neither in the base model nor in the recipe")
    with loading(str(folder), remedy="Export the recipe again."):
        build_compact(model, described[RECORD_KEY], recipe.folded)
        model.load_state_dict(recipe.new, strict=False)
        if os.path.lexists(folder / GENERATION):
            check_file(folder, GENERATION)
            model.generation_config = GenerationConfig.from_pretrained(folder)
    if verify and recipe.compact_sha256 != digest_model(model):
        raise RemedyError(
            f"{folder} does not give the compact model that was saved: its weights have another checksum than "
            f"with transformers {described.get('transformers_version')}. Export the recipe again, or install that",
            python=", or pass verify=False.",
            command=".",
        )
    if verify:
        check_finite(model, folder)
    if dtype is not None:
        # Buffers such as rotary frequencies keep their precision.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        model.config.dtype = dtype
    return model.eval()


def load_base(base: Path, recipe: Path, described: Mapping[str, Any]) -> tuple[PreTrainedModel, set[str]]:
    """Load the base model in a folder with the class, the type of numbers and the settings of a recipe's configuration.

    Returns:
        The dense model in evaluation mode, and the names of the weights that the base lacks or has in another shape,
        which have random values.
    """
    check_trust(recipe, described)
    record = described.get(RECORD_KEY)
    if not isinstance(record, dict):
        raise damaged_file(recipe / CONFIG, "it has no record of kept heads and neurons")
    check_record(record)
    with (
        loading(f"{recipe}, made from {base},", remedy="Export the recipe again, or download the base again."),
        checked_folder(base, verify=False, described=described),
        without_load_report(),
    ):
        config = AutoConfig.from_pretrained(recipe, trust_remote_code=False)
        vars(config).pop(PLAIN_LOADING, None)
        load: Any = model_class(config, recipe).from_pretrained
        model, found = load(
            base,
            # Layers that left the compact model are in the base.
            config=changed(dense_config(config), record.get(LAYERS_KEY, {}).get("config", {})),
            dtype=config.dtype or torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    return model, {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}


def build_compact(model: PreTrainedModel, record: Mapping[str, Any], folded: Mapping[str, Tensor]) -> None:
    """Remove from a base model what a record lacks, and fold factors into the rest, in place.

    Args:
        model: The model of :func:`load_base`.
        record: The record in the configuration of the compact model.
        folded: Factors of the kept units of each block, ``[num_kept]``; all 1 in blocks that are left out.
    """
    layers = record.get(LAYERS_KEY, {})
    units = {dense_name(layers, name): notes for name, notes in record["units"].items()}
    modules, prefix = dict(model.named_modules()), base_prefix(model)
    for name, notes in units.items():
        for key in SPEC_NOTES:
            if key in notes:
                # Layouts that were discovered.
                setattr(modules[prefix + name], key, notes[key])
    kept = dict(layers.get("kept", {}))
    lists = [one for one in find_layer_lists(model) if one.name in kept]
    gone = {one.name for each in lists for n, own in enumerate(each.blocks) if n not in kept[each.name] for one in own}
    blocks = [block for block in _blocks(model, units, folded) if block.name not in gone]
    apply_edits(plan_finalizing(model, blocks, [_factors(block, units, folded) for block in blocks]))
    for name, numbers in kept.items():
        drop_layers(model, next(one for one in find_layer_lists(model) if one.name == name), numbers)
    become_compact(model)


def _blocks(model: PreTrainedModel, units: Mapping[str, Any], folded: Mapping[str, Tensor]) -> list[Block]:
    """Return the blocks of a dense model, with neurons in the groups of its kept units, or of as many factors."""
    blocks: list[Block] = list(iter_attention_blocks(model))
    for block in iter_feed_forward_blocks(model):
        size = units.get(block.name, {}).get("group_size")
        if size is None and block.name in folded:
            size = -(-block.width_before // len(folded[block.name]))
        blocks.append(block if size is None else block.regrouped(size))
    return blocks


def _factors(block: Block, units: Mapping[str, Any], folded: Mapping[str, Tensor]) -> Tensor:
    """Return the factor of each unit of a dense block, ``[num_units]``: 0 for those that are removed."""
    notes = units.get(block.name, {})
    kept = list(notes.get("head_ids", notes.get("kept_groups", block.unit_ids)))
    own = folded.get(block.name, torch.ones(len(kept)))
    if own.shape != (len(kept),):
        raise InputError(f"There are {len(own)} factors of {block.name}, which keeps {len(kept)} units.")
    factors = torch.zeros(len(block.unit_ids))
    factors[kept] = own
    return factors


def digest_model(model: PreTrainedModel) -> str:
    """Return the checksum of the weights of a model, of those that are tied once."""
    tied = getattr(model, "all_tied_weights_keys", None) or ()
    return digest_tensors((name, tensor) for name, tensor in sorted(model.state_dict().items()) if name not in tied)
