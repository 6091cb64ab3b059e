"""Models in GGUF files of llama.cpp: dequantized once, into a folder that is loaded like any other."""

import hashlib
import json
import math
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from huggingface_hub import cached_assets_path
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from gating.errors import InputError, MissingFileError, MissingPackageError, loading
from gating.vocabulary import vocabulary_size

__all__ = ["unpack_gguf"]

# Tensors that follow from the configuration.
_COMPUTED = "rope_"
_REMEDY = "Name the model in a folder or on the hub."


def unpack_gguf(file: Path) -> Path:
    """Return the folder of the model in a GGUF file, with weights in float32 and the tokenizer.

    The file is read at the first call, and dequantized: the folder, in the cache of huggingface_hub, has the digest of
    the file in its name, and later calls find it.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: The package gguf is not installed.
        ValueError: It is no GGUF file, or transformers would drop some of it.
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
    hashed = hashlib.sha256()
    with file.open("rb") as opened:
        while piece := opened.read(1 << 20):
            hashed.update(piece)
    digest = hashed.hexdigest()[:16]
    cache = cached_assets_path("head-gating", namespace="gguf", subfolder="unpacked")
    folder = cache / digest
    with FileLock(cache / f"{digest}.lock"), tempfile.TemporaryDirectory(dir=cache) as scratch:
        if not folder.is_dir():
            with loading(f"The GGUF file {file}", remedy=_REMEDY):
                _write(file, Path(scratch) / "new")
            (Path(scratch) / "new").rename(folder)
    return folder


def _write(file: Path, folder: Path) -> None:
    from transformers import GgufConfig

    import gguf

    reader = gguf.GGUFReader(file)
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    if dropped := sorted(_dropped(config, reader)):
        raise InputError(f"The GGUF file {file} has {', '.join(dropped)}, which transformers drops. {_REMEDY}")
    options: dict[str, Any] = {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, config=config, **options)
    # transformers says nothing of weights that its class has not, such as biases.
    stored = sum(int(tensor.n_elements) for tensor in reader.tensors if not tensor.name.startswith(_COMPUTED))
    if stored != (read := model.num_parameters()):
        raise InputError(
            f"The GGUF file {file} has {stored:,} weights, and the {type(model).__name__} that transformers makes of "
            f"it {read:,}: its outputs would be others. {_REMEDY}"
        )
    vars(model.config).pop("_model_name_or_path", None)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    _forget_tokens(folder / "tokenizer.json", size=vocabulary_size(model))


def _dropped(config: Any, reader: Any) -> Iterator[str]:
    """Yield the keys and tensors of a file that change outputs, and that the configuration does not have."""
    own = reader.fields["general.architecture"].contents() + "."
    values = {key.removeprefix(own): one.contents() for key, one in reader.fields.items() if key.startswith(own)}
    layers = {tensor.name.split(".")[1] for tensor in reader.tensors if tensor.name.startswith("blk.")}
    if len(layers) != config.num_hidden_layers:
        yield f"block_count={values.get('block_count')}"
    rope = getattr(config, "rope_parameters", None) or {}
    # Where layers with a sliding window have parameters of their own, the file scales those of the others.
    rope = rope.get("full_attention", rope)
    if rope.get("rope_type", "default") == "default":
        yield from (tensor.name for tensor in reader.tensors if tensor.name.startswith(_COMPUTED))
        scaling = {key: value for key, value in values.items() if key.startswith(("rope.scaling.", "rope.scale_"))}
        yield from (f"{key}={value}" for key, value in scaling.items() if value not in ("none", 1.0))
    width = values.get("attention.key_length") or config.hidden_size // config.num_attention_heads
    knows_part = rope.get("partial_rotary_factor", 1.0) < 1 or hasattr(config, "rotary_dim")
    if (rotated := values.get("rope.dimension_count", width)) < width and not knows_part:
        yield f"rope.dimension_count={rotated}"
    if values.get("attention.causal") is False:
        yield "attention.causal=false"
    known = [value for value in config.to_dict().values() if isinstance(value, float)]
    for key, value in values.items():
        if key.startswith("attention.layer_norm") and not any(math.isclose(value, one, rel_tol=1e-5) for one in known):
            yield f"{key}={value:.3g}"


def _forget_tokens(file: Path, *, size: int | None) -> None:
    """Remove tokens without an embedding from a tokenizer: defaults of its class, which the GGUF file has not."""
    if size is None or not file.is_file():
        return
    settings = json.loads(file.read_text(encoding="utf-8"))
    known = [token for token in settings["added_tokens"] if token["id"] < size]
    if len(known) < len(settings["added_tokens"]):
        file.write_text(json.dumps({**settings, "added_tokens": known}, ensure_ascii=False), encoding="utf-8")
