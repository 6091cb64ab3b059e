"""Names that an untrusted configuration may have: classes of transformers, and no other files, kernels or code."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from gating.compact.files import damaged_file, walk
from gating.errors import InputError
from gating.loader.checksums import PLAIN_LOADING, RECORD_KEY
from gating.loader.integrity import REMEDY_OF_PLAIN_LOADING, mixed
from gating.loader.record import auto_classes

__all__ = ["check_trust", "model_class", "without_load_report"]

# Settings that make transformers load files other than those of a compact model.
_FOREIGN = {
    PLAIN_LOADING: "weights from another file",
    "quantization_config": "weights that are quantized",
    "base_model_name_or_path": "an adapter of another model",
}
_OWN_CODE = re.compile(r"modeling_compact\.[A-Za-z]\w*")


def check_trust(folder: Path, described: Mapping[str, Any]) -> None:
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
        raise damaged_file(folder / "config.json", f"the architecture {name} is not of the type {config.model_type!r}")
    return base


@contextmanager
def without_load_report() -> Iterator[None]:
    """Keep transformers from printing its table of mismatches before the error."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(before)
