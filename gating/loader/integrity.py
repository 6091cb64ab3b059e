"""Checks that a folder, and the model loaded from it, are as they were saved.

Nothing here imports torch, which takes seconds: the errors are needed before.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gating.loader.modeling import CHECKSUMS, CONFIG, GENERATION, PLAIN_LOADING, RECORD_KEY, digest_file, digest_table

__all__ = ["check_finite", "load_whole", "mixed", "write_checksums"]

# By PLAIN_LOADING, transformers loads weights from another file, and raises an error that ends with its value if that
# is no name of one. Classes with fewer heads ignore it; a plain class would say that sizes may be ignored.
REMEDY_OF_PLAIN_LOADING = (
    "none, because this model has lost heads or neurons, of which its plain class does not know. Load it with an Auto "
    "class or a pipeline and trust_remote_code=True, or with gating.load_compact"
)


class UserError(Exception):
    """An error that the user can mend, as its message explains."""

    in_command: str | None = None  # The message for users of the command line, where it differs.


class InputError(UserError, ValueError):
    """A value that cannot be used."""


class DamageError(InputError):
    """A model folder with a damaged file, or with files that do not belong together."""


def write_checksums(folder: Path, *, places: Mapping[str, str] | None = None) -> None:
    """Write the checksums of a folder that was just saved into its record, if it has one.

    The ``places`` are those of the compact class for each Auto class; transformers writes others for some names.
    """
    path = folder / CONFIG
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(config.get(RECORD_KEY), dict):
        return
    if places:
        config["auto_map"] = dict(places)
    if PLAIN_LOADING not in config and lacks_units(config[RECORD_KEY]):
        config[PLAIN_LOADING] = REMEDY_OF_PLAIN_LOADING
    patterns = ("*.safetensors", "*.safetensors.index.json", GENERATION)
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    sums = {file.name: digest_file(file) for file in files}
    config[RECORD_KEY][CHECKSUMS] = {**sums, CONFIG: digest_table(config)}
    beside = path.with_name(f".{CONFIG}.new")
    beside.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(beside, path)


def lacks_units(record: dict[str, Any]) -> bool:
    """Return whether a record that was just written has other shapes than the dense model."""
    return any("tensors" in entry or "without" in entry for entry in record["modules"].values())


def load_whole(load: Callable[..., Any], folder: Path) -> Any:
    """Load a model by some ``from_pretrained``; raise ``ValueError`` unless it takes up every tensor of its folder."""
    # transformers would give missing weights new values; mismatches are allowed so that the error names the tensor.
    loaded: tuple[Any, Any] = load(ignore_mismatched_sizes=True, output_loading_info=True)
    model, found = loaded
    for kind, problem in (
        ("mismatched_keys", "has another shape in the weights than the heads and neurons in config.json ask for"),
        ("missing_keys", "is not in the weights"),
        ("unexpected_keys", "is in the weights, but the heads and neurons in config.json do not keep it"),
    ):
        if found[kind]:
            first = sorted(found[kind])[0]
            raise mixed(folder, f"{first if isinstance(first, str) else first[0]} {problem}")
    return model


def mixed(folder: Path, reason: str) -> DamageError:
    """Return the error about files that do not belong together."""
    return DamageError(f"{folder} is damaged or mixed from two models: {reason}. Export the model again.")


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
