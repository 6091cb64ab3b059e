"""The adapter of a recipe: low-rank updates of PEFT, read without trust and merged into the base model."""

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from gating.compact.files import check_file, damaged_file, read_json, walk
from gating.errors import InputError, MissingPackageError, loading

__all__ = ["copy_adapter", "merge_adapter"]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Settings of LoRA that say what the tensors are updates of.
_KNOWN = {
    *("r", "lora_alpha", "target_modules", "exclude_modules", "fan_in_fan_out", "bias", "use_rslora", "use_dora"),
    *("modules_to_save", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "lora_bias"),
}
# Settings of training and of places, which change nothing of a merge.
_FREE = {
    *("peft_type", "task_type", "lora_dropout", "inference_mode", "peft_version", "auto_mapping", "runtime_config"),
    *("base_model_name_or_path", "revision", "megatron_core", "qalora_group_size", "init_lora_weights"),
    "ensure_weight_tying",
}
# Patterns of layers are regular expressions, which can take forever.
_NAME = re.compile(r"[\w.-]*")


def copy_adapter(adapter: Path, folder: Path) -> None:
    """Copy an adapter of PEFT into a new folder: the settings that a merge needs, and the weights.

    Raises:
        FileNotFoundError: The configuration or the weights do not exist, which have to be safetensors.
        ValueError: It is not LoRA, or has settings of which a recipe knows nothing.
    """
    settings, _ = _read(adapter)
    folder.mkdir()
    (folder / _CONFIG).write_text(json.dumps({"peft_type": "LORA", **settings}, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(adapter / _WEIGHTS, folder / _WEIGHTS)


def merge_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Merge the adapter in an untrusted folder into a dense model, in place.

    Raises:
        ImportError: PEFT is not installed.
        FileNotFoundError: The configuration or the weights do not exist.
        ValueError: A file is damaged, has settings of which a recipe knows nothing, or does not fit the model.
    """
    try:
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    except ImportError as error:
        raise MissingPackageError(
            "This recipe has an adapter, which needs the package peft. Install it with: pip install 'head-gating[peft]'"
        ) from error
    settings, weights = _read(folder)
    with loading(str(folder), remedy="Save the recipe again."), warnings.catch_warnings():
        # The result is compared or proven; about tied weights and deprecated names PEFT would warn, too.
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, LoraConfig(**settings))
        needed = {name for name in adapted.state_dict() if re.search(r"\.(lora_\w+|modules_to_save)\.", name)}
        found: Any = set_peft_model_state_dict(adapted, weights)
        if lost := sorted({*found.unexpected_keys, *(needed & set(found.missing_keys))}):
            raise damaged_file(folder / _WEIGHTS, f"it and {_CONFIG} do not have the same weights, such as {lost[0]}")
        adapted.merge_and_unload(safe_merge=True)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the settings of LoRA and the weights of an adapter."""
    path = folder / _CONFIG
    described = read_json(path)
    if described.get("peft_type") != "LORA":
        raise InputError(f"{path} is an adapter of the kind {described.get('peft_type')!r}; recipes take LORA.")
    if described.get("init_lora_weights", True) not in (True, False, "gaussian"):
        raise InputError(
            f"{path} has init_lora_weights={described['init_lora_weights']!r}, which changes the base model: save the "
            "merged model with gating.save_compact."
        )
    for name in sorted(described.keys() - _KNOWN - _FREE):
        if described[name]:
            raise InputError(f"{path} has {name}={described[name]!r}, of which recipes know nothing.")
    settings = {name: described[name] for name in sorted(described.keys() & _KNOWN)}
    for name, value in walk(settings):
        texts = [value] if isinstance(value, str) else list(value) if isinstance(value, dict) else []
        if not all(_NAME.fullmatch(text) for text in texts):
            raise InputError(f"{path} has {name}={value!r}: name layers, not patterns.")
    return settings, _read_weights(folder, settings)


def _read_weights(folder: Path, settings: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of an adapter, and compare its ranks with them before any is allocated."""
    check_file(folder / _WEIGHTS)
    try:
        weights = load_file(folder / _WEIGHTS)
    except (SafetensorError, OSError, OverflowError) as error:
        raise damaged_file(folder / _WEIGHTS, str(error).rstrip(".")) from error
    longest = max((max(tensor.shape, default=0) for tensor in weights.values()), default=0)
    for name, value in walk({name: settings.get(name) for name in ("r", "rank_pattern")}):
        if type(value) is int and not 0 < value <= longest:
            raise damaged_file(folder / _CONFIG, f"{name}={value} is not the rank of its weights")
    return weights
