"""Models in GGUF files of llama.cpp: dequantized once, into a folder that is loaded like any other."""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from huggingface_hub import cached_assets_path
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel

from gating.errors import InputError, MissingFileError, MissingPackageError, loading
from gating.vocabulary import vocabulary_size

__all__ = ["quantization_of", "unpack_gguf"]

# Written last, so that a folder with it is whole.
_SOURCE = "gguf.json"
# Types whose values are stored as they are.
_WHOLE = ("F32", "F16", "BF16")
# Tensors that follow from the configuration.
_COMPUTED = "rope_"
_REMEDY = "Name a file of an architecture that transformers reads, or the model in a folder or on the hub."


def quantization_of(folder: Path) -> str | None:
    """Return the type that most weights of an unpacked file had, such as ``Q4_1``; None if they were not quantized."""
    source = folder / _SOURCE
    if not source.is_file():
        return None
    kind: str = json.loads(source.read_text(encoding="utf-8"))["type"]
    return None if kind in _WHOLE else kind


def unpack_gguf(file: Path) -> Path:
    """Return the folder of the model in a GGUF file, with weights in float32 and the tokenizer.

    The file is read at the first call, and dequantized: the folder, in the cache of huggingface_hub, has the digest of
    the file in its name, and later calls find it.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: The package gguf is not installed.
        ValueError: It is no GGUF file, or one of an architecture that transformers does not read.
    """
    if not file.is_file():
        raise MissingFileError(f"The file {file} does not exist.")
    if find_spec("gguf") is None:
        raise MissingPackageError(
            "Reading GGUF files needs the package gguf. Install it with: pip install 'head-gating[gguf]'"
        )
    stat = file.stat()
    return _unpack(file.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache
def _unpack(file: Path, _size: int, _changed: int) -> Path:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    cache = cached_assets_path("head-gating", namespace="gguf", subfolder="unpacked")
    folder = cache / digest[:16]
    with FileLock(cache / f"{digest[:16]}.lock"):
        if not (folder / _SOURCE).is_file():
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                new = Path(scratch) / "new"
                _write(file, new)
                new.rename(folder)
    return folder


def _write(file: Path, folder: Path) -> None:
    reader = _read(file)
    tensors = reader.tensors
    whole: dict[str, Any] = {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    with loading(f"The GGUF file {file}", remedy=_REMEDY):
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        from gating.models.gguf_config import complete_config

        complete_config(config, reader, name=f"The GGUF file {file}")
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, config=config, **whole)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    _check_whole(model, tensors, file)
    vars(model.config).pop("_model_name_or_path", None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _forget_tokens(folder / "tokenizer.json", size=vocabulary_size(model))
    (folder / _SOURCE).write_text(json.dumps({"file": file.name, "type": _type_of(tensors)}) + "\n", encoding="utf-8")


def _read(file: Path) -> Any:
    """Return the reader of a file."""
    import gguf

    try:
        return gguf.GGUFReader(file)
    except Exception as error:
        raise InputError(f"{file} is no GGUF file that can be read: {error}.") from error


def _check_whole(model: PreTrainedModel, tensors: Sequence[Any], file: Path) -> None:
    """Raise ``InputError`` if transformers has left out weights of a file, such as biases that its class has not.

    It says nothing of them, and the outputs would be others.
    """
    stored = sum(int(tensor.n_elements) for tensor in tensors if not tensor.name.startswith(_COMPUTED))
    if stored != (read := model.num_parameters()):
        raise InputError(
            f"The GGUF file {file} has {stored:,} weights, and the {type(model).__name__} that transformers makes of "
            f"it {read:,}: its outputs would be others. {_REMEDY}"
        )


def _forget_tokens(file: Path, *, size: int | None) -> None:
    """Remove tokens without an embedding from a tokenizer: defaults of its class, which the GGUF file has not."""
    if size is None or not file.is_file():
        return
    settings = json.loads(file.read_text(encoding="utf-8"))
    known = [token for token in settings["added_tokens"] if token["id"] < size]
    if len(known) < len(settings["added_tokens"]):
        file.write_text(json.dumps({**settings, "added_tokens": known}, ensure_ascii=False), encoding="utf-8")


def _type_of(tensors: Sequence[Any]) -> str:
    """Return the type of most weights of a file."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        name = tensor.tensor_type.name
        sizes[name] = sizes.get(name, 0) + int(tensor.n_elements)
    return max(sizes, key=lambda name: sizes[name])
