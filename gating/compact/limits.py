"""Bounds on an untrusted folder: classes of transformers, no other files or code, and limited sizes.

A configuration of a few bytes can describe a model beyond any memory. Models are therefore built without memory, of at
most a multiple of the weights beside the configuration, and compared with the headers of these before any is allocated.
"""

import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor, nn
from torch.nn.modules import module as registration
from transformers import PreTrainedConfig, PreTrainedModel

from gating.compact.files import check_manifest, damaged_file, read_config, read_shapes, walk
from gating.errors import DamageError, InputError, InputTypeError
from gating.loader.modeling import CONFIG, PLAIN_LOADING, RECORD_KEY
from gating.loader.record import auto_classes
from gating.loader.saving import REMEDY_OF_PLAIN_LOADING, check_built
from gating.proof.conditions import check_has_values, check_no_adapters, check_not_wrapped

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
    """
    config, stored = read_config(folder) if described is None else described, read_shapes(folder)
    # Configurations allocate tables of labels and layers when they are instantiated.
    for name, value in walk(config):
        last = name.rpartition(".")[2]
        most = _most_parameters(len(stored)) if _LAYERS.search(last) else 2**63 - 1
        if type(value) is int and abs(value) > (_MAX_LABELS if last == "num_labels" else most):
            raise damaged_file(folder / CONFIG, f"{name}={value} cannot be of a model with {len(stored)} tensors")
    if verify:
        check_manifest(folder, config)
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
    """Raise an error as soon as a model under construction is far larger than weights of these ``sizes``."""
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


def load_whole(load: Callable[..., Any], folder: Path) -> Any:
    """Load a model by some ``from_pretrained``; raise ``ValueError`` unless it takes up every tensor of its folder."""
    # transformers would give missing weights new values; mismatches are allowed so that the error names the tensor.
    model, found = load(ignore_mismatched_sizes=True, output_loading_info=True)
    mismatched = [one if isinstance(one, str) else one[0] for one in found["mismatched_keys"]]
    if others := [*mismatched, *found["missing_keys"], *found["unexpected_keys"]]:
        raise mixed(folder, f"{min(others)} is another tensor in the weights than by config.json, or not in both")
    return model


def mixed(folder: Path, reason: str) -> DamageError:
    """Return the error about files that do not belong together."""
    return DamageError(f"{folder} is damaged or mixed from two models: {reason}. Export the model again.")


def check_model(model: PreTrainedModel) -> None:
    """Raise an error for a model that no folder can hold: it is wrapped, or has gates or adapters, or no values."""
    if not isinstance(model, PreTrainedModel):
        if isinstance(model, nn.Module):
            check_not_wrapped(model)
        own = " Call its save_pretrained(folder)." if hasattr(model, "save_pretrained") else ""
        raise InputTypeError(f"Only models of transformers can be saved as a folder, got {type(model).__name__}.{own}")
    if hasattr(model, "head_gates"):
        raise InputError("The model still has gates: call gating.finalize(model, gates) before saving it.")
    check_no_adapters(model)
    check_has_values(model)


def check_finite(model: Any, name: object) -> None:
    """Raise ``ValueError`` if a weight of a model, called ``name`` in the message, is NaN or infinite."""
    weights, stored = dict(model.named_parameters()), model.state_dict()
    for key, tensor in (*weights.items(), *model.named_buffers()):
        # Tables that no checkpoint has are without values in emptied blocks.
        if key not in stored:
            continue
        # Types of a single byte are quantized; buffers may mask with infinity.
        if tensor.is_meta or not tensor.is_floating_point() or tensor.element_size() == 1 or not tensor.numel():
            continue
        low, high = tensor.detach().aminmax()
        if low.isnan() or (key in weights and (low.isinf() or high.isinf())):
            is_half = str(tensor.dtype) == "torch.float16"
            problem = (
                f"{name}: {key} has values that are NaN or infinite, as after training that has diverged"
                f"{', or as numbers beyond 65504 are in float16' * is_half}. Take an earlier checkpoint"
                f"{' or another dtype' * is_half}"
            )
            raise InputError(f"{problem}, or pass verify=False in Python.")
