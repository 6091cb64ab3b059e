"""Models in GGUF files of llama.cpp: dequantized once, into a folder that is loaded like any other."""

import json
import math
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from huggingface_hub import cached_assets_path
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from gating.errors import InputError, explain, is_input_error, loading, shorten
from gating.loader.modeling import digest_file
from gating.serving.contexts import settings_of
from gating.serving.formats import check_packages

# Tensors that follow from the configuration, and values that have no effect of their own.
_COMPUTED = "rope_"
_UNUSED_SCALING = ("rope.scaling.original_context_length", "rope.scaling.finetuned")
_REMEDY = "Name the model in a folder or on the hub."


def unpack_gguf(file: Path) -> Path:
    """Return the folder of the model in a GGUF file, with weights in float32 and the tokenizer.

    The file is read at the first call, and dequantized: the folder, in the cache of huggingface_hub, has the digest of
    the file in its name, and later calls find it. What transformers would read otherwise than llama.cpp is refused.
    """
    check_packages("gguf")
    stat = file.stat()
    return _unpack(file.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache
def _unpack(file: Path, _size: int, _changed: int) -> Path:
    cache = cached_assets_path("head-gating", namespace="gguf", subfolder="checked")
    folder = cache / digest_file(file)[:16]
    with FileLock(f"{folder}.lock"), tempfile.TemporaryDirectory(dir=cache) as scratch:
        if not folder.is_dir():
            try:
                _write(file, Path(scratch) / "new")
            except Exception as error:  # transformers raises errors of many classes for what it does not know.
                if is_input_error(error):
                    raise
                reason = shorten(f"{type(error).__name__}: {explain(error)}".rstrip("."), most=300)
                raise InputError(f"transformers does not read the GGUF file {file} ({reason}). {_REMEDY}") from error
            (Path(scratch) / "new").rename(folder)
    return folder


def _write(file: Path, folder: Path) -> None:
    from transformers import GgufConfig

    config = _load_config(file)
    options: dict[str, Any] = {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    options |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
    loaded: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, config=config, **options)
    model, found = loaded
    # The number of weights is right: each that is missing, or of another shape, has another in its place.
    if wrong := sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}):
        raise InputError(f"The GGUF file {file} has no weights for {', '.join(wrong[:3])}. {_REMEDY}")
    vars(model.config).pop("_model_name_or_path", None)
    model.save_pretrained(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except BaseException as error:  # Of any class, and panics of tokenizers; exports without one have placeholders.
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        warnings.warn(f"transformers reads no tokenizer in {file} ({shorten(explain(error))}).", stacklevel=2)
    else:
        tokenizer.save_pretrained(folder)
        _forget_tokens(folder / "tokenizer.json", size=config.vocab_size)


def _load_config(file: Path) -> PreTrainedConfig:
    """Return the configuration of the model in a file, whose values and number of weights it has."""
    import gguf

    with loading(f"The GGUF file {file}", remedy="Download it again."):
        reader = gguf.GGUFReader(file)
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    own = reader.fields["general.architecture"].contents() + "."
    values = {key.removeprefix(own): one.contents() for key, one in reader.fields.items() if key.startswith(own)}
    if config.model_type == "mistral":  # transformers reads the type in the file's name, and then has no such type.
        config = AutoConfig.for_model(**{**config.to_dict(), "model_type": "llama"})
    width = values.setdefault("attention.key_length", config.hidden_size // config.num_attention_heads)
    if "head_dim" in vars(config) and not hasattr(config, "global_head_dim"):
        config.head_dim = width  # transformers reads it for some types only.
    if differing := sorted(_differing(config, values, [tensor.name for tensor in reader.tensors])):
        raise InputError(
            f"transformers reads the GGUF file {file} otherwise than llama.cpp: {', '.join(differing)}. {_REMEDY}"
        )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    stored = sum(int(tensor.n_elements) for tensor in reader.tensors if not tensor.name.startswith(_COMPUTED))
    if stored != (read := model.num_parameters()):
        raise InputError(
            f"The GGUF file {file} has {stored:,} weights, and the {type(model).__name__} that transformers makes of "
            f"it {read:,}: its outputs would be others. {_REMEDY}"
        )
    return config  # type: ignore[no-any-return]


def _differing(config: Any, values: Mapping[str, Any], tensors: Collection[str]) -> Iterator[str]:
    """Yield the values and tensors of a file that change outputs, and that the configuration does not have."""
    width, layers = values["attention.key_length"], {name.split(".")[1] for name in tensors if name[:4] == "blk."}
    # llama.cpp scales queries by the width of a head, but in the largest models.
    scale = getattr(config, "query_pre_attn_scalar", width)
    expected = {
        "attention.scale": None,
        "block_count": len(layers),
        "attention.causal": True,
        "attention.key_length": scale,
    }
    rope = getattr(config, "rope_parameters", None) or {}
    # Where layers with a sliding window have parameters of their own, the file scales those of the others.
    rope = rope.get("full_attention", rope)
    if rope.get("rope_type", "default") == "default":
        yield from (name for name in tensors if name.startswith(_COMPUTED))
        part = getattr(config, "rotary_dim", None) or int(width * rope.get("partial_rotary_factor", 1.0))
        scaling = dict.fromkeys(key for key in values if key.startswith("rope.scaling.") and key not in _UNUSED_SCALING)
        expected |= {**scaling, "rope.scaling.type": "none", "rope.dimension_count": part}
    settings = [(name, value) for name, value in settings_of(config) if isinstance(value, float)]
    for key, value in values.items():
        same = [one for name, one in settings if name.rpartition(".")[2] == key]
        known = same or [1.0, *(one for _, one in settings)]
        if not isinstance(value, float) or (key in expected and value != 1.0):
            if value != expected.get(key, value):
                yield f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}"
        elif not value > 0 or not any(math.isclose(value, one, rel_tol=1e-5) for one in known):
            yield f"{key}={value:.3g}"
    if not any(key.startswith("attention.layer_norm") for key in values):
        yield "no attention.layer_norm_rms_epsilon"


def _forget_tokens(file: Path, *, size: int) -> None:
    """Remove tokens without an embedding from a tokenizer: defaults of its class, which the GGUF file has not."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["added_tokens"] = [token for token in settings["added_tokens"] if token["id"] < size]
    file.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
