"""Saving of a compact model as a recipe: the removals and factors that make it from its base, in kilobytes."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import ModelCardData
from torch import Tensor
from transformers import PreTrainedModel

from gating.compact.files import digest_stored, read_config, write_manifest
from gating.compact.recipe import Recipe, build_compact, digest_model, find_base
from gating.compact.save import check_model, compact_copy, write_config
from gating.errors import InputError
from gating.loader.integrity import REMEDY_OF_PLAIN_LOADING, check_finite
from gating.loader.modeling import CONFIG, PLAIN_LOADING, base_prefix
from gating.loader.record import dense_class
from gating.pruning.prune_report import UnitCounts
from gating.storage.files import replacing_folder
from gating.storage.hub import check_upload, snapshot_of, upload
from gating.structure.layers import layers_record

__all__ = ["save_recipe"]

_LAYER_NUMBER = re.compile(r"(^|\.)\d+\.")


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
        overwrite: Whether a folder at this path may be renamed, to ``recipe.1`` and so on.
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
        FileExistsError: The folder is not empty and ``overwrite`` is false.
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
    check_model(model)
    check_finite(model, type(model).__name__)
    if repo_id is not None:
        check_upload(repo_id, token=token)
    place, found = Path(save_directory), find_base(os.fspath(base), revision=revision, token=token)
    title, commit = snapshot_of(str(found.absolute())) or (str(found.absolute()), None)
    if repo_id is not None and commit is None:
        raise InputError(f"base={base} is a folder of this machine: name the base on the hub, or leave out repo_id.")
    factors = {name: torch.tensor(list(values)) for name, values in (folded or {}).items() if {*values} - {1}}
    with replacing_folder(place, overwrite=overwrite) as folder:
        # The sentence is for plain transformers, which finds no weights.
        settings = {"dtype": model.dtype, PLAIN_LOADING: REMEDY_OF_PLAIN_LOADING}
        write_config(compact_copy(model), folder / CONFIG, **settings)
        if model.can_generate() and model.generation_config is not None:
            model.generation_config.save_pretrained(folder)
        rebuilt, lacking = build_compact(folder, found, read_config(folder), factors)
        recipe = Recipe(
            base=title,
            revision=commit,
            base_sha256=digest_stored(found),
            compact_sha256=digest_model(model),
            folded=factors,
            new=_new_weights(model, rebuilt, lacking, base=title),
        )
        recipe.write(folder)
        _write_card(model, recipe, folder)
        write_manifest(folder)
    if repo_id is not None:
        upload(place, repo_id, private=private, token=token)
    return place


def _new_weights(
    model: PreTrainedModel, rebuilt: PreTrainedModel, lacking: set[str], *, base: str
) -> dict[str, Tensor]:
    """Return the weights of a model that its base lacks or has otherwise; all others are equal to the bit.

    Raises:
        InputError: Other weights differ than a new head, and biases to which those of layers that left were added.
    """
    theirs, prefix, new = rebuilt.state_dict(), base_prefix(model), dict[str, Tensor]()
    lost_layers = bool(layers_record(model))
    for name, tensor in model.state_dict().items():
        other = theirs.get(name)
        is_same = other is not None and tensor.dtype == other.dtype and torch.equal(tensor.cpu(), other)
        if is_same and name not in lacking:
            continue
        # The base of another model lacks layers.
        is_new = name in lacking and not (name.startswith(prefix) and _LAYER_NUMBER.search(name))
        if not is_new and not (lost_layers and name.endswith("bias")):
            raise InputError(
                f"{name} of this {type(model).__name__} is not what {base} and the recipe give: weights were trained, "
                "or base or folded are those of another model. Save the model with its weights: gating.save_compact."
            )
        new[name] = tensor
    return new


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
