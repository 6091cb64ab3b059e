"""Loading of compact models from untrusted folders."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from transformers import AutoConfig, PreTrainedModel

from gating.compact.files import find_folder, read_config
from gating.compact.limits import (
    check_finite,
    check_trust,
    checked_folder,
    load_whole,
    model_class,
    without_load_report,
)
from gating.errors import InputError, InputTypeError, loading
from gating.loader.modeling import RECORD_KEY
from gating.loader.record_checks import check_record
from gating.loader.saving import SavedMixin, compact_class
from gating.report.card import write_card
from gating.storage.hub import RECIPE_FILES

_REMEDY = "Export the model again, or install the transformers_version in its config.json."


@torch.inference_mode(mode=False)  # Inference tensors could not be trained.
def load_compact(
    save_directory: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    base: str | os.PathLike[str] | None = None,
    verify: bool = True,
) -> PreTrainedModel:
    """Load a model of :func:`save_compact` or :func:`save_recipe` from a folder or the hub without running its code.

    Names, shapes and checksums in the folder are compared before memory is allocated, and no pickle is opened. From the
    hub, only configuration, safetensors and tokenizer files are downloaded, into the cache of huggingface_hub.

    Args:
        save_directory: Folder of a compact model, or of a dense one saved by transformers; or a name on the hub,
            ``user/name``, if no folder has this name.
        dtype: Dtype of the weights, or its name; by default that of the saved weights.
        revision: Branch, tag or commit on the hub; ``main`` by default.
        token: Token of the hub; by default the one of the login.
        cache_dir: Folder of the hub's cache; by default that of huggingface_hub.
        base: For a recipe, the folder or name of its base model, if it is elsewhere than the recipe says.
        verify: Whether to compare the files with their checksums, which reads them twice, to reject weights that are
            NaN or infinite, and to compare outputs on a small batch with those of the saved model. For a recipe, the
            weights of its base and of the model that is built are compared, too.

    Returns:
        The model, in evaluation mode.

    Raises:
        TypeError: ``save_directory`` is not a path, or ``dtype`` not a floating-point type.
        FileNotFoundError: The folder or one of its files is missing, and the hub has no such model or revision.
        ConnectionError: The hub cannot be reached or refuses access, and the model is not in its cache.
        ValueError: A file is damaged, the files do not belong together, or the configuration refers to code, kernels
            or weights outside of the folder.

    Example:
        >>> import tempfile
        >>> from gating import prune_heads, save_compact
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> report = prune_heads(model, {0: [0, 1, 2]})
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     loaded = load_compact(save_compact(model, f"{parent}/compact"))
        >>> loaded.encoder.layer[0].attention.self.query.weight.shape
        torch.Size([2, 8])
    """
    if isinstance(dtype, str):
        dtype = None if dtype == "auto" else getattr(torch, dtype, dtype)
    if not isinstance(dtype, torch.dtype | None) or (dtype and not dtype.is_floating_point):
        raise InputTypeError(f"dtype={dtype!r} is not a floating-point type of torch, such as torch.bfloat16.")
    folder = find_folder(save_directory, revision=revision, token=token, cache_dir=cache_dir)
    if (folder / RECIPE_FILES[0]).exists():
        from gating.compact.recipe import load_recipe

        return load_recipe(folder, base=base, dtype=dtype, token=token, cache_dir=cache_dir, verify=verify)
    if base is not None:
        raise InputError(f"base={base} is for recipes, and {folder} is none: leave it out.")
    described = read_config(folder)
    check_trust(folder, described)
    is_compact = RECORD_KEY in described
    if is_compact:
        check_record(described[RECORD_KEY])
    with (
        loading(str(folder), remedy=_REMEDY),
        checked_folder(folder, verify=verify),
        without_load_report(),
    ):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        dense = model_class(config, folder)
        cls: Any = compact_class(dense, type(config)) if is_compact else dense
        load = partial(cls.from_pretrained, folder, config=config, dtype=dtype or "auto", use_safetensors=True)
        if is_compact:
            # The checksums have been compared.
            load = partial(load, verify=False)
        model: Any = load_whole(load, folder)
    if verify:
        check_finite(model, folder)
        if is_compact and model.canary is not None:
            try:
                model.check_canary()
            except Exception as error:
                raise InputError(f"{error} Pass verify=False to load it anyway.") from error
    loaded: PreTrainedModel = model
    return loaded


def _write_uploaded_card(model: PreTrainedModel, folder: Path, repo_id: str, *, token: str | bool | None) -> None:
    """Replace transformers' template by the card of a compact model; a card that is on the hub already stays."""
    if not HfApi(token=token).file_exists(repo_id, "README.md"):
        write_card(folder / "README.md", model, None, repo_id=repo_id)


# The code of compact folders imports nothing of this package.
SavedMixin.write_card = _write_uploaded_card
