"""Saving of a compact model as a recipe: the removals and factors that make it from its base, in kilobytes."""

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import torch
from huggingface_hub import ModelCardData
from torch import Tensor
from transformers import PreTrainedModel

from gating.compact.digests import digest_stored
from gating.compact.files import read_config
from gating.compact.recipe import Recipe
from gating.compact.recipe_base import find_base, load_base, name_base
from gating.compact.recipe_load import build_compact, digest_model
from gating.discovery.find import search_attention
from gating.errors import InputError, InputTypeError
from gating.families.linear import without_adapter
from gating.loader.checksums import CONFIG, RECORD_KEY
from gating.loader.integrity import PLAIN_LOADING, REMEDY_OF_PLAIN_LOADING, check_finite
from gating.loader.modeling import base_prefix
from gating.loader.record import dense_class, describe
from gating.loader.saving import has_lost_units
from gating.proof.conditions import check_has_values, check_no_adapters, check_savable
from gating.pruning.prune_report import UnitCounts
from gating.storage.folders import replacing_folder
from gating.storage.results import RECIPE
from gating.storage.transfer import check_upload, upload
from gating.structure.attention import iter_attention_blocks
from gating.structure.blocks import Block
from gating.structure.feed_forward import FeedForwardBlock, iter_feed_forward_blocks
from gating.structure.layers import dense_name, find_layer_lists, layers_record

__all__ = ["save_recipe"]


def save_recipe(
    model: PreTrainedModel,
    save_directory: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str],
    folded: Mapping[str, Sequence[float]] | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    repo_id: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
) -> Path:
    """Save a compact model whose weights were not trained as a recipe for its base model, a folder of kilobytes.

    The folder has the name, commit and checksum of the base, the numbers of the kept heads and neurons, the factors
    that were folded into output projections, and weights that the base lacks, such as a new head.
    :func:`~gating.load_compact` builds the model from it. Before the folder appears, the model is built from it, and
    its weights are compared to the bit.

    Args:
        model: The compact model; it stays as it is.
        save_directory: Path of the folder.
        base: The dense model that the compact one was made from: a folder of safetensors files, or a name on the hub.
        folded: The factors of each block, ``FinalizeReport.folded``; None for a model without gates, whose heads or
            neurons were pruned by number.
        revision: Branch, tag or commit of the base on the hub; the recipe has the commit.
        overwrite: Whether the folder of an earlier recipe may be replaced, if no other file is in it.
        repo_id: Name on the hub, such as ``user/name``, to upload the folder to afterwards.
        private: Whether a new repository is private; by default as the account is set.
        token: Token of the hub; by default the one of the login.

    Returns:
        The path of the folder.

    Raises:
        TypeError: The model is not a model of transformers.
        ValueError: The base and the recipe do not give this model, for example because its weights were trained; the
            base is a compact model or a recipe itself; or the model still has gates.
        FileNotFoundError: There is no such base, or it has no weights as safetensors.
        FileExistsError: The folder is not empty and ``overwrite`` is false, or it holds anything but an earlier recipe.
        ConnectionError: The hub cannot be reached for the base, or the upload has failed; then the folder is saved.

    Example:
        >>> import tempfile
        >>> from gating import load_compact, prune_heads
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10)
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     BertModel(config).save_pretrained(f"{parent}/base")
        ...     model = BertModel.from_pretrained(f"{parent}/base")
        ...     report = prune_heads(model, {0: [0, 1, 2]})
        ...     loaded = load_compact(save_recipe(model, f"{parent}/recipe", base=f"{parent}/base"))
        >>> loaded.encoder.layer[0].attention.self.query.weight.shape
        torch.Size([2, 8])
    """
    _check_model(model)
    if repo_id is not None:
        check_upload(repo_id, token=token)
    factors = _checked_factors(model, folded or {})
    place = Path(save_directory)
    found = find_base(os.fspath(base), revision=revision, token=token)
    name, commit = name_base(found)
    if repo_id is not None and commit is None:
        raise InputError(f"base={base} is a folder of this machine: name the base on the hub, or leave out repo_id.")
    with replacing_folder(place, overwrite=overwrite, kind=RECIPE, keep=[found]) as folder:
        _write_config(model, folder)
        rebuilt, config, lacking = load_base(found, folder, read_config(folder))
        recipe = Recipe(
            base=name,
            revision=commit,
            base_sha256=digest_stored(found),
            compact_sha256=digest_model(model),
            folded=factors,
            new=_new_weights(model, rebuilt, lacking, base=name),
            biases=_changed_biases(model, rebuilt),
        )
        recipe.write(folder)
        _write_card(model, recipe, folder)
        build_compact(rebuilt, config, Recipe.read(folder), folder)
        _check_equal(model, rebuilt, recipe)
    if repo_id is not None:
        upload(place, repo_id, private=private, token=token)
    return place


def _check_model(model: PreTrainedModel) -> None:
    if not isinstance(model, PreTrainedModel):
        raise InputTypeError(f"Only models of transformers can be saved as a recipe, got {type(model).__name__}.")
    if hasattr(model, "head_gates"):
        raise InputError("The model still has gates: call gating.finalize(model, gates) before saving it.")
    check_no_adapters(model)
    check_has_values(model)
    check_savable(model)
    check_finite(model, type(model).__name__)


def _checked_factors(model: PreTrainedModel, folded: Mapping[str, Sequence[float]]) -> dict[str, Tensor]:
    """Return the factors of each block that are not all 1, float32, after a comparison with the units of the model."""
    blocks: list[Block] = [*iter_attention_blocks(model), *iter_feed_forward_blocks(model)]
    layers = layers_record(model)
    known = {dense_name(layers, block.name): block for block in blocks}
    gone = {*layers.get("heads", {}), *layers.get("neurons", {})}
    factors = {}
    for name, values in folded.items():
        if name in gone and not values:
            continue
        if name not in known:
            raise InputError(f"folded has factors of {name!r}, which is not a block of this {type(model).__name__}.")
        factors[name] = torch.tensor(list(values), dtype=torch.float32)
        if not (factors[name].isfinite() & (factors[name] > 0)).all():
            raise InputError(f"folded: {name} has factors that are not finite and above 0.")
        # Where no neurons were removed, a model does not know the groups that they were gated in.
        is_free = isinstance(known[name], FeedForwardBlock) and not hasattr(
            without_adapter(known[name].output_projection), "kept_groups"
        )
        if not is_free and len(values) != len(known[name].unit_ids):
            raise InputError(
                f"folded has {len(values)} factors of {name}, which keeps {len(known[name].unit_ids)} units: give "
                "those of the report on this removal, report.folded."
            )
    return {name: tensor for name, tensor in factors.items() if (tensor != 1).any()}


def _write_config(model: PreTrainedModel, folder: Path) -> None:
    """Write the configuration of a compact model with its record, and its settings of generation."""
    if not has_lost_units(model):
        search_attention(model)  # Raises for a model without heads or neurons to describe.
    config = deepcopy(model.config)
    vars(config).pop("auto_map", None)
    config.architectures, config.dtype = [dense_class(model).__name__], model.dtype
    setattr(config, RECORD_KEY, describe(model))
    # For plain transformers, which finds no weights.
    setattr(config, PLAIN_LOADING, REMEDY_OF_PLAIN_LOADING)
    (folder / CONFIG).write_text(config.to_json_string(), encoding="utf-8")
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


def _new_weights(model: PreTrainedModel, dense: PreTrainedModel, lacking: set[str], *, base: str) -> dict[str, Tensor]:
    """Return the weights of a compact model that its base lacks."""
    mine, theirs = model.state_dict(), dense.state_dict()
    for name in sorted(lacking):
        if name not in mine or mine[name].shape != theirs[name].shape:
            raise InputError(f"{base} is not the base of this {type(model).__name__}: it lacks {name}.")
    return {name: mine[name] for name in lacking}


def _changed_biases(model: PreTrainedModel, dense: PreTrainedModel) -> dict[str, Tensor]:
    """Return the biases to which those of layers that left a compact model were added."""
    record, prefix = layers_record(model), base_prefix(model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    sizes, theirs, biases = {one.name: len(one.layers) for one in find_layer_lists(dense)}, dense.state_dict(), {}
    for layers in find_layer_lists(model):
        numbers = record.get("kept", {}).get(layers.name, [])
        for number, (own, following) in enumerate(pairwise([*numbers, sizes.get(layers.name, 0)])):
            blocks = layers.blocks[number] if following - own > 1 else ()
            bias = getattr(without_adapter(blocks[-1].output_projection), "bias", None) if blocks else None
            if bias is None:
                continue
            former = theirs.get(prefix + dense_name(record, names[bias].removeprefix(prefix)))
            if former is None or not torch.equal(former, bias.cpu()):
                biases[names[bias]] = bias.detach()
    return biases


def _check_equal(model: PreTrainedModel, rebuilt: PreTrainedModel, recipe: Recipe) -> None:
    """Raise ``InputError`` unless a rebuilt model has the weights of the given one."""
    mine, theirs = model.state_dict(), rebuilt.state_dict()
    differing = sorted(mine.keys() ^ theirs.keys())
    for name in sorted(mine.keys() & theirs.keys()):
        one, other = mine[name].cpu(), theirs[name]
        differing += [] if one.dtype == other.dtype and torch.equal(one, other) else [name]
    if differing:
        raise InputError(
            f"{differing[0]} of this {type(model).__name__} is not what {recipe.title} and the recipe give: weights "
            "were trained, or base or folded are those of another model. Save the model with its weights: "
            "gating.save_compact."
        )


def _write_card(model: PreTrainedModel, recipe: Recipe, folder: Path) -> None:
    """Write the card of a recipe, with the base as metadata for the hub."""
    name = dense_class(model).__name__
    base = recipe.base if recipe.revision is not None else None
    metadata = ModelCardData(base_model=base, library_name="transformers", tags=["head-gating", "pruned"]).to_yaml()
    units = UnitCounts.of(model).units
    text = f"""---
{metadata}
---

# Recipe of a compact {name}

What has to be removed from {recipe.title}, and the factors of what stays: {units["heads"]:,} attention heads and
{units["neurons"]:,} feed-forward neurons. It has no weights but those that the base lacks.

```python
import gating

model = gating.load_compact("FOLDER")  # or the name of this model on the hub
```
"""
    (folder / "README.md").write_text(text, encoding="utf-8")
