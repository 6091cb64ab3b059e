"""How large a model may be that a configuration from somewhere asks for: as large as the weights beside it.

A configuration is a few bytes, and what it asks for can be beyond any memory. Models are built without memory first,
so they can be compared with the headers of the weights before anything is allocated.
"""

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration
from transformers import PreTrainedModel

from .errors import DamageError, InputError
from .files import Stored, check_checksums, read_config, read_headers, walk
from .record import RECORD_KEY

__all__ = ["check_finite", "check_fits", "checked_folder", "is_being_checked", "load_whole"]

_MAX_LABELS = 1_000_000
# Names of numbers of layers; sizes "per layer" and the positions of layers are called otherwise.
_LAYERS = re.compile("(layers?|depth)$")


@dataclass(frozen=True)
class _Expected:
    """What is being loaded: the folder, its tensors, and whether the model must need every one of them."""

    folder: Path
    stored: Mapping[str, Stored]
    exact: bool


_expected: ContextVar[_Expected | None] = ContextVar("expected", default=None)


@contextmanager
def checked_folder(folder: Path, *, verify: bool, exact: bool) -> Iterator[None]:
    """Check a model folder, and stop the building of a model, inside of the block, that does not fit its weights.

    Args:
        folder: The folder.
        verify: Whether to compare its files with their checksums.
        exact: Whether the model is the one that was saved, not one with another task head.

    Raises:
        FileNotFoundError: One of its files is missing.
        ValueError: One of its files is damaged, or they do not fit together.
    """
    config, stored = read_config(folder), read_headers(folder)
    _check_numbers(folder, config, stored)
    if verify:
        check_checksums(folder, config)
    token = _expected.set(_Expected(folder, stored, exact))
    try:
        with _bounded_building(folder, stored):
            yield
    finally:
        _expected.reset(token)


def is_being_checked() -> bool:
    """Say whether this is inside of a block of :func:`checked_folder`."""
    return _expected.get() is not None


def load_whole(load: Callable[..., Any]) -> PreTrainedModel:
    """Load a model, inside of a block of :func:`checked_folder`, that has to take up every tensor of the folder.

    Args:
        load: Some ``from_pretrained`` with its arguments.

    Raises:
        ValueError: The weights lack a tensor, or have one too many, or one of another shape.
    """
    expected = _expected.get()
    assert expected is not None
    # Mismatches are let through to be told here; transformers would give missing weights new values.
    loaded: tuple[PreTrainedModel, Any] = load(ignore_mismatched_sizes=True, output_loading_info=True)
    model, found = loaded
    for kind, what in (
        ("mismatched_keys", "has another shape in the weights than the heads that config.json keeps ask for"),
        ("missing_keys", "is not in the weights"),
        ("unexpected_keys", "is in the weights, but the heads in config.json do not keep it"),
    ):
        if found[kind]:
            first = sorted(found[kind])[0]
            raise _mixed(expected.folder, f"{first if isinstance(first, str) else first[0]} {what}")
    return model


def check_fits(model: PreTrainedModel) -> None:
    """Compare a model that was just built, without memory, with the weights that it will get.

    Args:
        model: Built in a block of :func:`checked_folder`; elsewhere nothing is compared.

    Raises:
        ValueError: They do not fit together; the message names what does not.
    """
    expected = _expected.get()
    if expected is None or not expected.exact:
        return
    needed, stored = model.state_dict(), expected.stored
    why = (
        _unknown_block(model)
        or _differing_shape(needed, stored)
        or _differing_size(model, needed, stored)
        or _differing_type(needed, stored)
    )
    if why:
        raise _mixed(expected.folder, why)


def check_finite(model: nn.Module, name: object) -> None:
    """Make sure that a model has no weight that is NaN or infinite.

    Args:
        model: The model, as it was loaded or is to be saved.
        name: Its name or folder, for the message.

    Raises:
        ValueError: It has one; the message names the tensor.
    """
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        # Types of a single byte are quantized; buffers may mask with infinity.
        if tensor.is_meta or not tensor.is_floating_point() or tensor.element_size() == 1 or not tensor.numel():
            continue
        low, high = tensor.detach().aminmax()
        if low.isnan() or (isinstance(tensor, nn.Parameter) and (low.isinf() or high.isinf())):
            is_half = tensor.dtype is torch.float16
            raise InputError(
                f"{name}: {key} has values that are NaN or infinite, as after training that has diverged"
                f"{', or as numbers beyond 65504 are in float16' * is_half}. Take an earlier checkpoint"
                f"{' or another dtype' * is_half}, or pass verify=False to go on all the same."
            )


def _unknown_block(model: PreTrainedModel) -> str | None:
    """A record may be of more blocks than a base model has, but not than the model that was saved."""
    blocks = (getattr(model.config, RECORD_KEY, None) or {"blocks": ()})["blocks"]
    for name in blocks:
        try:
            model.base_model.get_submodule(name)
        except AttributeError:
            return f"config.json has heads of {name!r}, which {type(model).__name__} does not have"
    return None


def _differing_shape(needed: Mapping[str, Tensor], stored: Mapping[str, Stored]) -> str | None:
    for name in sorted(needed.keys() & stored.keys()):
        if tuple(needed[name].shape) != stored[name].shape:
            return (
                f"{name} has the shape {list(stored[name].shape)} in the weights, but the heads that config.json keeps "
                f"ask for {list(needed[name].shape)}"
            )
    return None


def _differing_size(model: PreTrainedModel, needed: Mapping[str, Tensor], stored: Mapping[str, Stored]) -> str | None:
    """Count numbers: some families keep weights under other names in the file, and tied weights are there once."""
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
        return f"{extra[0]} is in the weights, but the heads in config.json do not keep it"
    return f"the weights are {found:,} numbers, but the heads that config.json keeps have {least:,}"


def _differing_type(needed: Mapping[str, Tensor], stored: Mapping[str, Stored]) -> str | None:
    integers = {name.rpartition(".")[2] for name, tensor in needed.items() if not tensor.is_floating_point()}
    for name, tensor in stored.items():
        if not re.match("B?F", tensor.dtype) and name.rpartition(".")[2] not in integers:
            return f"{name} is of the type {tensor.dtype} in the weights, which has no fractions"
    return None


def _check_numbers(folder: Path, config: Mapping[str, Any], stored: Mapping[str, Stored]) -> None:
    """Refuse numbers that no model with these weights has, before a configuration is made of them.

    Configurations make a table of labels and a list of layers as they are made.
    """
    for name, value in walk(config):
        last = name.rpartition(".")[2]
        most = _most_parameters(stored) if _LAYERS.search(last) else _MAX_LABELS if last == "num_labels" else 2**63 - 1
        if type(value) is int and abs(value) > most:
            reason = f"{name}={value} cannot be of a model with {len(stored)} tensors"
            raise DamageError(f"{folder}/config.json is damaged: {reason}. Export the model again.", reason=reason)


@contextmanager
def _bounded_building(folder: Path, stored: Mapping[str, Stored]) -> Iterator[None]:
    """Stop the building of a model that gets far larger than its weights."""
    most_tensors = _most_parameters(stored)
    # Before the heads are removed; and a small model is never too large.
    most_elements = 16 * sum(tensor.num_elements for tensor in stored.values()) + 2**24
    thread, counts = threading.get_ident(), [0, 0]

    def count(_module: nn.Module, _name: str, tensor: Tensor | None) -> None:
        if tensor is None or threading.get_ident() != thread:
            return
        counts[0] += 1
        counts[1] += tensor.numel()
        if counts[0] > most_tensors or counts[1] > most_elements:
            reason = f"it describes a model far larger than its weights, which are {len(stored)} tensors"
            raise DamageError(f"{folder}/config.json is damaged: {reason}. Export the model again.", reason=reason)

    handles = [
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _most_parameters(stored: Mapping[str, Stored]) -> int:
    """Layers without heads have fewer tensors than others, but at least a quarter of them."""
    return 4 * len(stored) + 100


def _mixed(folder: Path, reason: str) -> DamageError:
    message = f"{folder} is damaged or mixed from two models: {reason}. Export the model again."
    return DamageError(message, reason=reason)
