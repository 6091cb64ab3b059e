"""Objects as plain values, which are the same in each process: numbers, texts, lists and mappings, no addresses."""

import dataclasses
import functools
import hashlib
from collections.abc import Collection, Mapping
from enum import Enum
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from gating.storage.identity import table_digests

__all__ = ["describe", "describe_object", "digest"]

# Attributes of any module, and those that say where an object comes from, which are no settings.
_NO_SETTINGS = frozenset(vars(nn.Module())) | {"_parts", "_search_number", "_start", "measured", "name_or_path"}
_DEEPEST = 4
# Longer lists and mappings are compared by a digest.
_MOST_VALUES = 1000
# Folders of installed packages, whose functions have the same names in other versions.
_INSTALLED = ("site-packages", "dist-packages")


def describe(value: Any, *, depth: int = 0) -> Any:
    """Return a value as one of numbers, texts, lists and mappings; of an object without settings, its class."""
    if isinstance(value, np.generic):
        value = value.item()  # A checkpoint holds plain values only.
    if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, Tensor):
        return digest(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f"{value.shape} {_sha(value.dtype.str.encode() + value.tobytes())}"
    if isinstance(value, bytes):
        return _sha(value)
    if isinstance(value, PreTrainedTokenizerBase):
        return _of_tokenizer(value)
    if isinstance(value, Mapping):
        return _short({str(describe(key)): describe(one, depth=depth + 1) for key, one in value.items()})
    if isinstance(value, (set, frozenset)):
        return _short(sorted(str(describe(one, depth=depth + 1)) for one in value))
    if isinstance(value, Collection):
        return _short([describe(one, depth=depth + 1) for one in value])
    if hasattr(value, "with_format") and hasattr(value, "column_names"):
        return table_digests(value)
    has_weights = isinstance(value, nn.Module) and any(True for _ in value.parameters())
    if isinstance(value, type) or has_weights or depth >= _DEEPEST:
        return getattr(value, "__qualname__", type(value).__qualname__)
    return describe_object(value, depth=depth)


def describe_object(value: object, *, depth: int = 0) -> Any:
    """Return the class of an object such as an objective, and its settings; of a function, its name, code and closure.

    Example:
        >>> from gating import Convergence
        >>> describe_object(Convergence(patience=3))["patience"]
        3
    """
    if isinstance(value, functools.partial):
        target = describe(value.func, depth=depth + 1)
        return {"_target_": target, **_each({"args": value.args, **value.keywords}, depth=depth)}
    if isinstance(value, MethodType):
        of_function = _of_function(value.__func__, depth=depth) if isinstance(value.__func__, FunctionType) else {}
        return {"_target_": value.__qualname__, **of_function, **_each({"self": value.__self__}, depth=depth)}
    if isinstance(value, FunctionType):
        return _of_function(value, depth=depth)
    settings: dict[str, Any] = {"_target_": type(value).__qualname__}
    attributes = _attributes(value)
    if not attributes and not isinstance(value, nn.Module) and not dataclasses.is_dataclass(value):
        return getattr(value, "__qualname__", settings["_target_"])  # Such as a function of C.
    for name, one in attributes.items():
        if name == "_budget" and dataclasses.is_dataclass(one):
            # Its settings are arguments of the objective.
            settings |= {**describe_object(one, depth=depth + 1), "_target_": settings["_target_"]}
        else:
            settings[name.lstrip("_")] = describe(one, depth=depth + 1)
    return settings


def digest(tensor: Tensor, *, step: int = 1) -> str:
    """Return the shape and a fingerprint of a tensor, of which each ``step``-th element is read."""
    if tensor.is_meta:
        return f"{tuple(tensor.shape)}"
    read = tensor.detach().flatten()[::step].cpu()
    # Numbers of 16 bits and others that NumPy does not have.
    content = (read.double() if read.dtype.is_floating_point or read.dtype.is_complex else read).numpy().tobytes()
    return f"{tuple(tensor.shape)} {_sha(content)}"


def _attributes(value: object) -> dict[str, Any]:
    """Return the attributes of an object that may be settings."""
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value) if field.repr}
    state: Any = object.__getstate__(value)
    # That of an object with slots is a pair.
    parts = [part for part in (state if isinstance(state, tuple) else (state,)) if part]
    found = [*(item for part in parts for item in part.items())]
    found += value.named_children() if isinstance(value, nn.Module) else []
    return {name: one for name, one in found if name not in _NO_SETTINGS}


def _each(values: Mapping[str, Any], *, depth: int) -> dict[str, Any]:
    """Return the description of each value: that of a long table as a whole is one text."""
    return {name: describe(one, depth=depth + 1) for name, one in values.items()}


def _of_function(function: FunctionType, *, depth: int) -> dict[str, Any]:
    """Return the name of a function and the values that it was made with; of one that is not installed, its code."""
    code = function.__code__
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    made_with = {name: cell.cell_contents for name, cell in cells.items() if _is_filled(cell)}
    made_with |= {"defaults": [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).items()]}
    settings = {"_target_": function.__qualname__, **_each(made_with, depth=depth)}
    if not any(folder in code.co_filename for folder in _INSTALLED):
        settings["code"] = _sha(repr(_of_code(code, doc=function.__doc__)).encode())
    return settings


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # Not yet assigned.
        return False


def _of_code(code: CodeType, *, doc: str | None = None) -> list[Any]:
    """Return the instructions, names and constants of a code object, without line numbers and docstring."""
    constants = [one for one in code.co_consts if doc is None or one != doc]
    plain = [
        _of_code(one) if isinstance(one, CodeType) else sorted(map(repr, one)) if isinstance(one, frozenset) else one
        for one in constants
    ]
    return [code.co_code, code.co_names, plain]


def _of_tokenizer(tokenizer: Any) -> dict[str, Any]:
    settings = {"_target_": type(tokenizer).__qualname__, "padding_side": tokenizer.padding_side}
    vocabulary = _sha(repr(sorted(tokenizer.get_vocab().items())).encode())
    return {**settings, "vocabulary": vocabulary, "special_tokens": describe(tokenizer.special_tokens_map)}


def _short(values: Any) -> Any:
    return values if len(values) <= _MOST_VALUES else f"{len(values)} values {_sha(repr(values).encode())}"


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
