"""Compact models that are built from their base by a recipe, and proven to be those that were saved."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel

from gating.compact.files import check_file, damaged_file, read_config
from gating.compact.limits import checked_folder
from gating.compact.manifest import check_manifest, digest_stored, digest_tensors
from gating.compact.recipe import Recipe
from gating.compact.recipe_base import find_base
from gating.compact.trust import check_trust, model_class, without_load_report
from gating.errors import InputError, RemedyError, loading
from gating.loader.checksums import CHECKSUMS, CONFIG, GENERATION, PLAIN_LOADING, RECORD_KEY
from gating.loader.integrity import check_finite
from gating.loader.modeling import base_prefix
from gating.loader.record import LAYERS_KEY, dense_config, describe
from gating.loader.record_checks import check_record
from gating.loader.saving import become_compact
from gating.pruning.layer_settings import changed, setting_of
from gating.pruning.layers import build_recorded, drop_layers
from gating.pruning.plan import plan_finalizing
from gating.structure.attention import iter_attention_blocks
from gating.structure.blocks import Block, share_specs
from gating.structure.edits import apply_edits
from gating.structure.feed_forward import iter_feed_forward_blocks
from gating.structure.layers import LayerList, dense_name, find_layer_lists

__all__ = ["build_compact", "digest_model", "fill", "load_base", "load_recipe"]

_LAYER_NUMBER = re.compile(r"(^|\.)\d+\.")


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
    if dtype is not None and not dtype.is_floating_point:
        raise InputError(f"dtype={dtype} has no fractions: give one such as torch.bfloat16.")
    described = read_config(folder)
    if verify:
        check_manifest(folder)
    recipe = Recipe.read(folder)
    name, revision = (recipe.base, recipe.revision) if base is None else (os.fspath(base), None)
    place = find_base(name, revision=revision, token=token, cache_dir=cache_dir)
    if verify:
        _check_base(recipe, place)
    model, config, lacking = load_base(place, folder, described)
    if lost := sorted(lacking - set(recipe.new)):
        raise damaged_file(folder, f"{lost[0]} is neither in the base model nor in the recipe")
    build_compact(model, config, recipe, folder)
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
    model.eval()
    return model


def load_base(
    base: Path, recipe: Path, described: Mapping[str, Any]
) -> tuple[PreTrainedModel, PreTrainedConfig, set[str]]:
    """Load the base model in a folder with the class, the type of numbers and the settings of a recipe's configuration.

    Returns:
        The dense model in evaluation mode, the configuration of the compact one with its record, and the names of the
        weights that the base lacks or has in another shape, which have random values.
    """
    check_trust(recipe, described)
    if not isinstance(described.get(RECORD_KEY), dict):
        raise damaged_file(recipe / CONFIG, "it has no record of kept heads and neurons")
    check_record(described[RECORD_KEY])
    with (
        loading(f"{recipe}, made from {base},", remedy="Export the recipe again, or download the base again."),
        checked_folder(base, verify=False, exact=False, described=described),
        without_load_report(),
    ):
        config = AutoConfig.from_pretrained(recipe, trust_remote_code=False)
        vars(config).pop(PLAIN_LOADING, None)
        load: Any = model_class(config, recipe).from_pretrained
        model, found = load(
            base,
            # Layers that left the compact model are in the base.
            config=changed(dense_config(config), described[RECORD_KEY].get(LAYERS_KEY, {}).get("config", {})),
            dtype=config.dtype or torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    lacking = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    for name in sorted(lacking):
        if name.startswith(base_prefix(model)) and _LAYER_NUMBER.search(name):
            raise InputError(
                f"{base} is not the base of this {type(model).__name__}: it lacks {name}, or has it in another shape."
            )
    return model, config, lacking


def build_compact(model: PreTrainedModel, config: PreTrainedConfig, recipe: Recipe, folder: Path) -> None:
    """Turn the model of :func:`load_base` into the compact one of a recipe, in place."""
    record = {name: value for name, value in getattr(config, RECORD_KEY).items() if name != CHECKSUMS}
    # A model without memory, of which the numbers and layouts of the record are checked.
    with loading(str(folder), remedy="Export the recipe again."):
        recorded = build_recorded(model, config)
    layers = record.get(LAYERS_KEY, {})
    units = {dense_name(layers, name): notes for name, notes in record["units"].items()}
    lists = _lists_without_layers(model, record, folder)
    if not lists:  # Otherwise modules of the two have other names, and only known layouts are found.
        share_specs(recorded, model)
    gone = {one.name for layers, kept in lists for n, own in enumerate(layers.blocks) if n not in kept for one in own}
    blocks = _blocks(model, units, {name: len(factors) for name, factors in recipe.folded.items()})
    blocks = [block for block in blocks if block.name not in gone]
    factors = [_factors(block, units.get(block.name, {}), recipe.folded.get(block.name), folder) for block in blocks]
    if unknown := sorted(recipe.folded.keys() - {block.name for block in blocks}):
        raise damaged_file(folder, f"it has factors of {unknown[0]!r}, which is not a block of {type(model).__name__}")
    apply_edits(plan_finalizing(model, blocks, factors))
    for name, kept in [(layers.name, kept) for layers, kept in lists]:
        drop_layers(model, next(layers for layers in find_layer_lists(model) if layers.name == name), kept)
    fill(model, recipe.new, folder)
    become_compact(model)
    is_same = json.loads(json.dumps(describe(model))) == record
    with loading(str(folder), remedy="Export the recipe again."):
        former = layers.get("config", {}) if is_same else {}
        is_same = is_same and all(setting_of(model.config, name) == setting_of(config, name) for name in former)
    if not is_same:
        raise damaged_file(folder / CONFIG, "its record is not that of the units that are left of the base model")
    if os.path.lexists(folder / GENERATION):
        check_file(folder / GENERATION)
        with loading(str(folder / GENERATION), remedy="Export the recipe again."):
            model.generation_config = GenerationConfig.from_pretrained(folder)


def _lists_without_layers(
    model: PreTrainedModel, record: Mapping[str, Any], folder: Path
) -> list[tuple[LayerList, list[int]]]:
    """Return the lists of a dense model that layers leave, with the numbers of those that stay."""
    kept = record.get(LAYERS_KEY, {}).get("kept", {})
    lists = [(layers, kept[layers.name]) for layers in find_layer_lists(model) if layers.name in kept]
    if len(lists) < len(kept):
        raise damaged_file(folder / CONFIG, f"{type(model).__name__} has other lists of layers than {sorted(kept)}")
    for layers, numbers in lists:
        if not numbers or numbers != sorted(set(numbers)) or numbers[-1] >= len(layers.layers):
            raise damaged_file(folder / CONFIG, f"{layers.name} cannot keep the layers {numbers}")
    return lists


def _blocks(model: PreTrainedModel, units: Mapping[str, Any], counts: Mapping[str, int]) -> list[Block]:
    """Return the blocks of a dense model, with neurons in the groups of its kept units, or of as many factors."""
    blocks: list[Block] = list(iter_attention_blocks(model))
    for block in iter_feed_forward_blocks(model):
        size = units.get(block.name, {}).get("group_size")
        if size is None and counts.get(block.name):
            size = -(-block.width_before // counts[block.name])
        blocks.append(block if size is None else block.regrouped(size))
    return blocks


def digest_model(model: PreTrainedModel) -> str:
    """Return the checksum of the weights of a model, of those that are tied once."""
    tied = getattr(model, "all_tied_weights_keys", None) or ()
    return digest_tensors((name, tensor) for name, tensor in sorted(model.state_dict().items()) if name not in tied)


def _check_base(recipe: Recipe, place: Path) -> None:
    found = digest_stored(place)
    if found != recipe.base_sha256:
        raise RemedyError(
            f"The weights in {place} are not those of the base model of this recipe, {recipe.title}: their checksum is "
            f"{found[:16]}..., and that of the base {recipe.base_sha256[:16]}... Bring back the base that the recipe "
            "was made from",
            python=", or name it with base=...",
            command=".",
        )


def _factors(block: Block, notes: Mapping[str, Any], folded: Tensor | None, folder: Path) -> Tensor:
    """Return the factor of each unit of a dense block, ``[num_units]``: 0 for those that are removed."""
    kept: Sequence[int] = notes.get("head_ids", notes.get("kept_groups", block.unit_ids))
    if folded is not None and len(folded) != len(kept):
        raise damaged_file(folder, f"it has {len(folded)} factors of {block.name}, which keeps {len(kept)} units")
    factors = torch.zeros(len(block.unit_ids))
    factors[list(kept)] = 1.0 if folded is None else folded
    return factors


def fill(model: PreTrainedModel, new: Mapping[str, Tensor], folder: Path) -> None:
    """Give the weights that are in the recipe their values, in place; all are checked first."""
    state = model.state_dict()
    for name, tensor in new.items():
        if name not in state or (state[name].shape, state[name].dtype) != (tensor.shape, tensor.dtype):
            raise damaged_file(folder, f"{name} has another shape or type than in {type(model).__name__}")
    with torch.no_grad():
        for name, tensor in new.items():
            state[name].copy_(tensor)
