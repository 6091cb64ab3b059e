"""Loading of compact models from untrusted folders, within bounds: classes of transformers, no other files or code.

A configuration of a few bytes can describe a model beyond any memory. Models are therefore built without memory, of at
most a multiple of the weights beside the configuration, and compared with the headers of these before any is allocated.
"""

import math
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi
from torch import Tensor, nn
from torch.nn.modules import module as registration
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from gating.compact.files import check_manifest, damaged_file, find_folder, read_config, read_shapes, walk
from gating.errors import InputError, loading
from gating.loader.checksums import CONFIG, PLAIN_LOADING, RECORD_KEY
from gating.loader.integrity import REMEDY_OF_PLAIN_LOADING, check_finite, load_whole, mixed
from gating.loader.record import auto_classes
from gating.loader.record_checks import check_record
from gating.loader.saving import SavedMixin, check_built, compact_class
from gating.report.card import write_card
from gating.storage.hub import RECIPE_FILES

__all__ = ["bounded_building", "check_trust", "checked_folder", "load_compact", "model_class", "without_load_report"]

# Settings that make transformers load files other than those of a compact model.
_FOREIGN = {
    PLAIN_LOADING: "weights from another file",
    "quantization_config": "weights that are quantized",
    "base_model_name_or_path": "an adapter of another model",
}
_MAX_LABELS = 1_000_000
# A dense model, which is built first, may be this much larger than a compact one that has lost nearly everything.
_LARGER = 512
# Names of numbers of layers; not of sizes "per layer" or positions of layers.
_LAYERS = re.compile("(layers?|depth)$")


def load_compact(
    save_directory: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
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
        dtype: Dtype of the weights; by default that of the saved weights.
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
        loading(str(folder), remedy="Export the model again."),
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


def check_trust(folder: Path, described: Mapping[str, Any]) -> None:
    """Reject a configuration that makes transformers load other files or run foreign code."""
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{folder} holds an adapter (adapter_config.json), which may be of any other model.")
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


def model_class(config: PreTrainedConfig, folder: Path) -> type[PreTrainedModel]:
    """Return the class of transformers that a configuration names; raise ``ValueError`` for any other."""
    names = config.architectures
    name = names[0] if isinstance(names, list) and names else ""
    base = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(base, type) and issubclass(base, PreTrainedModel)):
        raise InputError(f"{folder}/config.json names the architecture {name!r}, which transformers does not have.")
    # Some families combine their own configuration class with the models of another family.
    models = {cls.__module__ for cls in auto_classes(type(config)).values()}
    if base.config_class is not type(config) and base.__module__ not in models:
        raise damaged_file(folder / CONFIG, f"the architecture {name} is not of the type {config.model_type!r}")
    return base


@contextmanager
def without_load_report() -> Iterator[None]:
    """Keep transformers from printing its table of missing weights: before an error, or a recipe that has them."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(before)


@contextmanager
def checked_folder(folder: Path, *, verify: bool, described: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Check a model folder on entry, and refuse to build a model that does not fit its weights inside the block.

    With ``verify``, files are compared with their checksums. The configuration is that of the folder unless it is given
    as ``described``.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or the files do not fit together.
    """
    config, stored = read_config(folder) if described is None else described, read_shapes(folder)
    # Configurations allocate tables of labels and layers when they are instantiated.
    for name, value in walk(config):
        last = name.rpartition(".")[2]
        most = _most_parameters(len(stored)) if _LAYERS.search(last) else 2**63 - 1
        if type(value) is int and abs(value) > (_MAX_LABELS if last == "num_labels" else most):
            raise damaged_file(folder / CONFIG, f"{name}={value} cannot be of a model with {len(stored)} tensors")
    if verify:
        check_manifest(folder, config if RECORD_KEY in config else None)
    token = check_built.set(partial(_check_fits, folder=folder, stored=stored))
    try:
        with bounded_building(folder / CONFIG, [math.prod(shape) for shape in stored.values()]):
            yield
    finally:
        check_built.reset(token)


def _check_fits(model: PreTrainedModel, *, folder: Path, stored: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ``ValueError`` if a compact model that was built without memory does not fit its weights.

    Names are not compared here: some families store weights under other names, and tied weights once.
    """
    optional = {*(getattr(model, "all_tied_weights_keys", None) or ()), *(model._keys_to_ignore_on_save or ())}
    needed = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in optional}
    for name in sorted(needed.keys() & stored.keys()):
        if needed[name] != stored[name]:
            raise mixed(
                folder, f"{name} is {list(stored[name])} in the weights, and {list(needed[name])} by config.json"
            )
    if sum(map(math.prod, needed.values())) > sum(map(math.prod, stored.values())):
        raise mixed(folder, f"{min(needed.keys() - stored.keys(), default='a part')} is not in the weights")


@contextmanager
def bounded_building(path: Path, sizes: list[int]) -> Iterator[None]:
    """Raise an error as soon as a model under construction is far larger than the weights that it is to have.

    Args:
        path: The file that describes the model, for the error.
        sizes: Numbers of elements of the tensors of the weights.
    """
    most_tensors, most_elements = _most_parameters(len(sizes)), _LARGER * sum(sizes) + 2**24
    thread, counts = threading.get_ident(), [0, 0]

    def count(_module: nn.Module, _name: str, tensor: Tensor | None) -> None:
        if tensor is None or threading.get_ident() != thread:
            return
        counts[0] += 1
        counts[1] += tensor.numel()
        if counts[0] > most_tensors or counts[1] > most_elements:
            raise damaged_file(path, f"it describes a model far larger than its weights of {len(sizes)} tensors")

    handles = [
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _most_parameters(num_tensors: int) -> int:
    """Return the bound on parameters: layers without heads or neurons keep at least a quarter of their tensors."""
    return 4 * num_tensors + 100
