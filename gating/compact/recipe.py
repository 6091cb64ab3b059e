"""Recipes: a base model by name and checksum, and its kept units and factors.

A folder with a recipe has no weights of its own. ``recipe.json`` names the base::

    {"format": 2, "base": "user/name", "revision": "0a1b...", "base_sha256": "...", "compact_sha256": "..."}

``recipe.safetensors`` has the factors of kept units, and the weights that the base lacks or has otherwise: a new head,
and biases to which those of layers that left were added. The kept units and layers are in the record of
``config.json``, as in every compact folder.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from gating.compact.files import (
    check_file,
    check_manifest,
    damaged_file,
    digest_stored,
    digest_tensors,
    find_folder,
    open_tensors,
    read_config,
    read_json,
    write_manifest,
)
from gating.compact.limits import (
    check_finite,
    check_model,
    check_trust,
    checked_folder,
    model_class,
    without_load_report,
)
from gating.errors import InputError, loading
from gating.loader.modeling import CONFIG, GENERATION, PLAIN_LOADING, RECORD_KEY, base_prefix
from gating.loader.record import LAYERS_KEY, dense_class, dense_config
from gating.loader.record_checks import check_fits, check_record
from gating.loader.saving import REMEDY_OF_PLAIN_LOADING, compact_copy, write_config
from gating.pruning.layers import changed
from gating.pruning.plan import remove_recorded
from gating.storage.files import replacing_folder
from gating.storage.hub import RECIPE_FILES, check_upload, snapshot_of, upload
from gating.structure.layers import layers_record

_TABLE, _TENSORS = RECIPE_FILES
_FORMAT = 2
_LAYER_NUMBER = re.compile(r"(^|\.)\d+\.")


@dataclass(frozen=True)
class Recipe:
    """A compact model as changes of a base model.

    Attributes:
        base: Name of the base on the hub, or the path of its folder.
        revision: Commit on the hub; None for a folder.
        base_sha256: Checksum of the weights of the base, see :func:`~gating.compact.files.digest_stored`.
        compact_sha256: Checksum of the weights of the compact model.
        folded: For each block, the factors of its kept units, ``[num_kept]``; all 1 in blocks that are left out. Names
            are those in the base.
        new: Weights of the model that the base lacks or has otherwise, by name.
    """

    base: str
    revision: str | None
    base_sha256: str
    compact_sha256: str
    folded: Mapping[str, Tensor]
    new: Mapping[str, Tensor]

    @property
    def title(self) -> str:
        """Name of the base and its revision."""
        return self.base if self.revision is None else f"{self.base} (revision {self.revision})"

    def write(self, folder: Path) -> None:
        """Write the table and the tensors into a folder."""
        table = {"format": _FORMAT, **vars(self)}
        kinds = {kind: table.pop(kind) for kind in ("folded", "new")}
        tensors = {f"{kind}.{name}": one.detach().cpu().clone() for kind in kinds for name, one in kinds[kind].items()}
        save_file(tensors, folder / _TENSORS, metadata={"format": "pt"})
        (folder / _TABLE).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Recipe":
        """Read the recipe of an untrusted folder; raise ``ValueError`` if it is damaged or of another format."""
        table = read_json(folder, _TABLE)
        kinds: dict[str, dict[str, Tensor]] = {"folded": {}, "new": {}}
        with loading(str(folder), remedy="Export the recipe again."):
            # The revision is a part of a path in the cache of the hub.
            if table.pop("format") != _FORMAT or re.search(r"\W", table["revision"] or ""):
                raise damaged_file(folder / _TABLE, f"its format is not {_FORMAT}, or its revision is no commit")
            with open_tensors(check_file(folder, _TENSORS)) as file:
                for name in file.keys():  # noqa: SIM118
                    kind, _, rest = name.partition(".")
                    kinds[kind][rest] = file.get_tensor(name)
            return cls(**{**table, "base": os.fspath(table["base"])}, folded=kinds["folded"], new=kinds["new"])


def is_recipe(folder: Path) -> bool:
    """Return whether a folder holds a recipe."""
    return os.path.lexists(folder / _TABLE)


def find_base(name: str, **options: Any) -> Path:
    """Return the folder of a base model; the options are those of :func:`~gating.compact.files.find_folder`."""
    folder = find_folder(name, is_base=True, **options)
    described = read_config(folder)
    if is_recipe(folder) or RECORD_KEY in described:
        raise InputError(f"The base model {folder} is compact itself: name the dense model that it was made from.")
    check_trust(folder, described)
    return folder


def processor_folder(folder: Path) -> Path:
    """Return the folder with the tokenizer or processor of a model: for a recipe, that of its base, else the same."""
    if not is_recipe(folder):
        return folder
    recipe = Recipe.read(folder)
    return find_base(recipe.base, revision=recipe.revision)


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
        rebuilt, lacking = _build_compact(folder, found, factors)
        recipe = Recipe(
            base=title,
            revision=commit,
            base_sha256=digest_stored(found),
            compact_sha256=_digest_model(model),
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

    They are a new head, and biases to which those of layers that left were added.
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
    text = f"""---
{metadata}
---

# Recipe of a compact {name}

What has to be removed from {recipe.title}, and the factors of what stays. It has no weights but those that the base
lacks.

```python
import gating

model = gating.load_compact("FOLDER")  # or the name of this model on the hub
```
"""
    (folder / "README.md").write_text(text, encoding="utf-8")


def load_recipe(
    folder: Path,
    *,
    base: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | None = None,
    verify: bool = True,
    **options: Any,
) -> PreTrainedModel:
    """Build the compact model of a recipe; the arguments and errors are those of ``load_compact``.

    With ``verify``, the files of the folder, the weights of the base and those of the result are compared with their
    checksums.
    """
    if verify:
        check_manifest(folder)
    recipe = Recipe.read(folder)
    name, revision = (recipe.base, recipe.revision) if base is None else (os.fspath(base), None)
    place = find_base(name, revision=revision, **options)
    if verify and recipe.base_sha256 != digest_stored(place):
        raise InputError(
            f"The weights in {place} are not those of the base model of this recipe, {recipe.title}. Bring back the "
            "base that the recipe was made from, or name it with base=... in Python."
        )
    with loading(str(folder), remedy="Export the recipe again."):
        model, lacking = _build_compact(folder, place, recipe.folded)
        if lost := sorted(lacking - set(recipe.new)):
            raise damaged_file(folder, f"{lost[0]} is neither in the base model nor in the recipe")
        model.load_state_dict(recipe.new, strict=False)
        if os.path.lexists(folder / GENERATION):
            check_file(folder, GENERATION)
            model.generation_config = GenerationConfig.from_pretrained(folder)
    if verify and recipe.compact_sha256 != _digest_model(model):
        raise InputError(
            f"{folder} does not give the compact model that was saved: its weights have another checksum. Install the "
            "transformers_version in its config.json, or export the recipe again."
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


def _build_compact(recipe: Path, base: Path, folded: Mapping[str, Tensor]) -> tuple[PreTrainedModel, set[str]]:
    """Load a base model, remove the units that the record of a recipe lacks, and fold factors into the others.

    Returns also the names of the weights that the base lacks or has in another shape, which are random.
    """
    described = read_config(recipe)
    check_trust(recipe, described)
    check_record(described.get(RECORD_KEY))
    record = described[RECORD_KEY]
    with checked_folder(base, verify=False, described=described), without_load_report():
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
    # Another version of transformers may have other names.
    check_fits(model, record)
    remove_recorded(model, record, folded=folded)
    return model, {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}


def _digest_model(model: PreTrainedModel) -> str:
    """Return the checksum of the weights of a model, of those that are tied once."""
    tied = getattr(model, "all_tied_weights_keys", None) or ()
    return digest_tensors((name, tensor) for name, tensor in sorted(model.state_dict().items()) if name not in tied)
