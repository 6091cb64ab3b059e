"""Upper bounds on the size of models that untrusted configurations describe, from the weights beside them.

A configuration of a few bytes can describe a model beyond any memory. Models are therefore built without memory and
compared with the headers of the weights before anything is allocated.
"""

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as registration
from transformers import PreTrainedModel

from gating.compact.files import StoredTensor, check_listed, damaged_file, read_config, read_headers, walk
from gating.compact.manifest import check_manifest
from gating.errors import InputError
from gating.loader.checksums import CONFIG, RECORD_KEY
from gating.loader.integrity import check_checksums, mixed
from gating.loader.saving import check_built
from gating.structure.attention import iter_attention_blocks
from gating.structure.feed_forward import iter_feed_forward_blocks

__all__ = ["bounded_building", "checked_folder"]

_MAX_LABELS = 1_000_000
# Neurons of a layer; the widest of the configurations of transformers has 65,536.
_MAX_WIDTH = 2**20
# Names of numbers of layers; not of sizes "per layer" or positions of layers.
_LAYERS = re.compile("(layers?|depth)$")


@contextmanager
def checked_folder(
    folder: Path, *, verify: bool, exact: bool, described: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Check a model folder on entry, and refuse to build a model that does not fit its weights inside the block.

    With ``verify``, files are compared with their checksums. Unless ``exact``, the model may have another task head.
    The configuration is that of the folder unless it is given as ``described``.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or the files do not fit together.
    """
    config, stored = read_config(folder) if described is None else described, read_headers(folder)
    if any(name.startswith("head_gates.") for name in stored):
        raise InputError(
            f"{folder} is a checkpoint of a search: its model still has gates. Resume the training, or load a "
            "checkpoint of the recovery."
        )
    _check_numbers(folder, config, stored)
    if verify and RECORD_KEY in config:
        check_listed(folder, config[RECORD_KEY])
        check_checksums(folder, config)
        # The record in the configuration has no checksums of the tokenizer.
        check_manifest(folder, of_model=False)
    elif verify:
        check_manifest(folder)
    token = check_built.set(partial(_check_fits, folder=folder, stored=stored) if exact else None)
    try:
        # The model is built with all its heads and neurons; a small model is never too large.
        longest = 16 * sum(tensor.num_elements for tensor in stored.values()) + 2**24
        most = longest + _most_removed(config, stored)
        with bounded_building(folder / CONFIG, len(stored), most_elements=most, longest=longest):
            yield
    finally:
        check_built.reset(token)


def _check_fits(model: PreTrainedModel, *, folder: Path, stored: Mapping[str, StoredTensor]) -> None:
    """Raise ``ValueError`` if a model that was built without memory does not fit the weights that it will get."""
    needed = model.state_dict()
    reason = (
        _differing_shape(needed, stored)
        or _differing_size(model, needed, stored)
        or _differing_type(needed, stored)
        or _differing_units(model)
    )
    if reason:
        raise mixed(folder, reason)


def _differing_shape(needed: Mapping[str, Tensor], stored: Mapping[str, StoredTensor]) -> str | None:
    for name in sorted(needed.keys() & stored.keys()):
        if tuple(needed[name].shape) != stored[name].shape:
            return (
                f"{name} has the shape {list(stored[name].shape)} in the weights, but the heads and "
                f"neurons that config.json keeps ask for {list(needed[name].shape)}"
            )
    return None


def _differing_size(
    model: PreTrainedModel, needed: Mapping[str, Tensor], stored: Mapping[str, StoredTensor]
) -> str | None:
    """Return the problem of a total size that differs.

    Names are not compared: some families store weights under other names, and tied weights once.
    """
    optional = {*(getattr(model, "all_tied_weights_keys", None) or ()), *(model._keys_to_ignore_on_save or ())}
    least = sum(tensor.numel() for name, tensor in needed.items() if name not in optional)
    most = sum(tensor.numel() for tensor in needed.values())
    found = sum(tensor.num_elements for tensor in stored.values())
    if least <= found <= most:
        return None
    missing, extra = sorted(needed.keys() - optional - stored.keys()), sorted(stored.keys() - needed.keys())
    if missing and not extra:
        return f"{missing[0]} is not in the weights"
    if extra and not missing:
        return f"{extra[0]} is in the weights, but the heads and neurons in config.json do not keep it"
    return f"the weights are {found:,} numbers, but the heads and neurons that config.json keeps have {least:,}"


def _differing_type(needed: Mapping[str, Tensor], stored: Mapping[str, StoredTensor]) -> str | None:
    integers = {name.rpartition(".")[2] for name, tensor in needed.items() if not tensor.is_floating_point()}
    for name, tensor in stored.items():
        if not re.match("B?F", tensor.dtype) and name.rpartition(".")[2] not in integers:
            return f"{name} is of the type {tensor.dtype} in the weights, which has no fractions"
    return None


def _differing_units(model: PreTrainedModel) -> str | None:
    """Return the problem of a block that has not as many features as units."""
    for block in (*iter_attention_blocks(model), *iter_feed_forward_blocks(model)):
        owner, name, dim = block.input_weight
        if sum(block.slot_widths) != (found := getattr(owner, name).shape[dim]):
            return f"config.json names units of {block.name} with {sum(block.slot_widths)} features, and it has {found}"
    return None


def _check_numbers(folder: Path, config: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> None:
    """Raise an error on numbers that no model with these weights has.

    Configurations allocate tables of labels and layers when they are instantiated, so that this check comes first.
    """
    for name, value in walk(config):
        last, most = name.rpartition(".")[2], 2**63 - 1
        if _LAYERS.search(last):
            most = _most_parameters(len(stored))
        elif last == "num_labels":
            most = _MAX_LABELS
        if type(value) is int and abs(value) > most:
            raise damaged_file(folder / CONFIG, f"{name}={value} cannot be of a model with {len(stored)} tensors")


@contextmanager
def bounded_building(path: Path, num_tensors: int, *, most_elements: int, longest: int | None = None) -> Iterator[None]:
    """Raise an error as soon as a model under construction is far larger than a number of tensors and of elements.

    Args:
        path: The file that describes the model, for the error.
        num_tensors: Number of the tensors of the model without its removed units.
        most_elements: Bound on the numbers in all tensors.
        longest: Bound on a dimension; by default that on the numbers.
    """
    most_tensors, longest = _most_parameters(num_tensors), most_elements if longest is None else longest
    thread, counts = threading.get_ident(), [0, 0]

    def count(_module: nn.Module, _name: str, tensor: Tensor | None) -> None:
        if tensor is None or threading.get_ident() != thread:
            return
        counts[0] += 1
        counts[1] += tensor.numel()
        if counts[0] > most_tensors or counts[1] > most_elements or max(tensor.shape, default=0) > longest:
            raise damaged_file(
                path, f"it describes a model far larger than its weights, which are {num_tensors} tensors"
            )

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


def _most_removed(config: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> int:
    """Return a bound on the numbers in the rows and columns of removed neurons.

    Without most of its neurons, a model may be a hundredth of the original. A neuron has at most three vectors of the
    hidden size, which some stored tensor has.
    """
    record = config.get(RECORD_KEY)
    entries = walk(record.get("units") if isinstance(record, dict) else None)
    widths = [value for name, value in entries if name.endswith(".width_before") and type(value) is int and value > 0]
    num_neurons = sum(min(width, _MAX_WIDTH) for width in widths)
    longest = max((max(tensor.shape, default=0) for tensor in stored.values() if tensor.num_elements), default=0)
    return 3 * num_neurons * longest
