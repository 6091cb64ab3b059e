"""Loading of compact models from untrusted folders."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from gating.compact.files import damaged_file, read_config, walk
from gating.compact.hub import find_folder
from gating.compact.limits import checked_folder
from gating.compact.record_checks import check_record
from gating.errors import InputError, loading
from gating.loader.compact import auto_classes, compact_class
from gating.loader.integrity import PLAIN_LOADING, RECORD_KEY, REMEDY_OF_PLAIN_LOADING, check_finite, load_whole, mixed

__all__ = ["load_compact"]

# Settings that make transformers load files other than those of a compact model.
_FOREIGN = {
    PLAIN_LOADING: "weights from another file",
    "quantization_config": "weights that are quantized",
    "base_model_name_or_path": "an adapter of another model",
}
_OWN_CODE = re.compile(r"compact\.[A-Za-z]\w*")


def load_compact(
    save_directory: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    verify: bool = True,
) -> PreTrainedModel:
    """Load a model of :func:`~gating.compact.save.save_compact` from a folder or the hub without running its code.

    Names, shapes and checksums in the folder are compared before memory is allocated, and no pickle is opened. From the
    hub, only configuration, safetensors and tokenizer files are downloaded, into the cache of huggingface_hub.

    Args:
        save_directory: Folder of a compact model, or of a dense one saved by transformers; or a name on the hub,
            ``user/name``, if no folder has this name.
        dtype: Dtype of the weights; by default that of the saved weights.
        revision: Branch, tag or commit on the hub; ``main`` by default.
        token: Token of the hub; by default the one of the login.
        cache_dir: Folder of the hub's cache; by default that of huggingface_hub.
        verify: Whether to compare the files with their checksums, which reads them twice, and to reject weights that
            are NaN or infinite.

    Returns:
        The model, in evaluation mode.

    Raises:
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
    folder = find_folder(save_directory, revision=revision, token=token, cache_dir=cache_dir)
    described = read_config(folder)
    _check_trust(folder, described)
    is_compact = RECORD_KEY in described
    with (
        loading(str(folder), remedy="Export the model again."),
        checked_folder(folder, verify=verify, exact=is_compact),
        _without_load_report(),
    ):
        check_record(described.get(RECORD_KEY))
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        base = _model_class(config, folder)
        cls = compact_class(base, type(config)) if is_compact else base
        load = partial(cls.from_pretrained, folder, config=config, dtype=dtype or "auto", use_safetensors=True)
        model: PreTrainedModel = load_whole(load, folder)
    if verify:
        check_finite(model, folder)
    return model


def _check_trust(folder: Path, described: Mapping[str, Any]) -> None:
    """Reject a configuration that makes transformers load other files or run foreign code."""
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{folder} holds an adapter (adapter_config.json), which may be of any other model.")
    # save_compact writes no other code references.
    auto_map = described.get("auto_map") if RECORD_KEY in described else None
    if auto_map is not None and not (isinstance(auto_map, dict) and all(map(_is_own, auto_map, auto_map.values()))):
        raise InputError(f"{folder}/config.json names code (auto_map) that is not of a compact model.")
    for dotted, value in walk(described):
        name = dotted.rpartition(".")[2]
        if (dotted, value) == (PLAIN_LOADING, REMEDY_OF_PLAIN_LOADING):
            # The sentence is for other loaders.
            if RECORD_KEY not in described:
                raise mixed(folder, "config.json lacks the record of the heads and neurons that are left")
        elif name in _FOREIGN and value is not None:
            raise InputError(
                f"{folder}/config.json asks for {_FOREIGN[name]} ({name}), which load_compact does not load."
            )
        if re.search("(attn|experts)_implementation", name) and "/" in str(value):
            raise InputError(f"{folder}/config.json asks for a kernel from elsewhere, {name}={value!r}.")


def _is_own(auto_name: str, reference: object) -> bool:
    return auto_name.startswith("AutoModel") and bool(_OWN_CODE.fullmatch(str(reference)))


def _model_class(config: PreTrainedConfig, folder: Path) -> type[PreTrainedModel]:
    names = config.architectures
    name = names[0] if isinstance(names, list) and names else ""
    base = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(base, type) and issubclass(base, PreTrainedModel)):
        raise InputError(f"{folder}/config.json names the architecture {name!r}, which transformers does not have.")
    # Some families combine their own configuration class with the models of another family.
    models = {cls.__module__ for cls in auto_classes(type(config)).values()}
    if base.config_class is not type(config) and base.__module__ not in models:
        raise damaged_file(folder / "config.json", f"the architecture {name} is not of the type {config.model_type!r}")
    return base


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Keep transformers from printing its table of mismatches before the error."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(before)
