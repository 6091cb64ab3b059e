"""Settings of a trainer with gates that decide its result, as plain values for a checkpoint."""

import dataclasses
import hashlib
from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from gating.gates import HeadGates
from gating.objectives import Objective
from gating.objectives.parameter_groups import default_gate_lr

__all__ = [
    "adapter_settings",
    "argument_settings",
    "object_settings",
    "optimizer_settings",
    "search_settings",
]

# Arguments that change no result, by the beginnings of their names: where and what is logged, saved and evaluated, and
# how the work is done on a device.
_FREE = (
    *("output_dir", "run_name", "project", "resume_from_checkpoint", "do_", "debug", "skip_memory_metrics"),
    *("log", "report_to", "disable_tqdm", "trackio_", "include_num_input_tokens_seen"),
    *("save_", "hub_", "push_to_hub", "enable_jit_checkpoint"),
    *("eval_", "per_device_eval_batch_size", "prediction_loss_only", "include_for_metrics", "batch_eval_metrics"),
    *("bf16_full_eval", "fp16_full_eval"),
    *("use_cpu", "tf32", "local_rank", "ddp_", "dataloader_", "torch_compile_", "torch_empty_cache_steps"),
    *("activation_checkpointing", "gradient_checkpointing", "activation_offloading", "full_determinism"),
    *("fsdp", "deepspeed", "parallelism_config", "dataset_num_proc", "model_init_kwargs", "trust_remote_code", "vllm_"),
    # How a training resumes.
    *("ignore_data_skip", "restore_callback_states_from_checkpoint", "auto_find_batch_size"),
)
# These decide in spite of their beginning.
_DECIDES = ("dataloader_drop_last",)
# They say when the gates are checked, and when the best model is looked for.
_OF_LOGS, _OF_EVALUATIONS = ("logging_strategy", "logging_steps"), ("eval_strategy", "eval_steps", "eval_delay")
# Attributes of any module, which are no settings.
_OF_MODULES = frozenset(vars(nn.Module())) | {"_search_number"}
# Of adapters: where they come from.
_OF_PLACES = ("peft_version", "base_model_name_or_path", "auto_mapping", "runtime_config", "inference_mode", "revision")
_DEEPEST = 4


def argument_settings(args: TrainingArguments) -> dict[str, Any]:
    """Return the arguments of a trainer that decide its result.

    Args:
        args: The arguments, also of a class that is made from transformers'.
    """
    names = [field.name for field in dataclasses.fields(args)]
    chosen = [name for name in names if not name.startswith(_FREE) or name in _DECIDES]
    chosen += _OF_EVALUATIONS if args.load_best_model_at_end else ()
    return {name: _plain(getattr(args, name)) for name in chosen} | {"world_size": args.world_size}


def object_settings(value: object) -> Any:
    """Return the class of an object such as an objective, and its settings: attributes that are plain values.

    Example:
        >>> from gating import Convergence
        >>> object_settings(Convergence(patience=3))["patience"]
        3
    """
    return None if value is None else _of_object(value, depth=0)


def gate_settings(gates: HeadGates) -> dict[str, Any]:
    """Return the settings of gates, and the blocks that they are on."""
    names = ("units", "group_size", "group_queries", "temperature", "stretch_limits", "init_prob_open")
    settings = {name: _plain(getattr(gates, name)) for name in names}
    return {**settings, "blocks": dict(zip(gates.block_names, gates.block_sizes, strict=True))}


def search_settings(
    gates: HeadGates,
    objective: Objective,
    *,
    rates: Mapping[str, float | None],
    convergence: object,
    recovery: float,
    args: TrainingArguments,
) -> dict[str, Any]:
    """Return the settings of a search that has not begun.

    Args:
        gates: The gates.
        objective: The objective, attached to them.
        rates: Learning rates ``gate_lr`` and ``multiplier_lr``.
        convergence: Criterion that ends the search early; None without one.
        recovery: Share of the steps after the search.
        args: Arguments of the trainer: the criterion is asked at logged steps.
    """
    logs = {name: _plain(getattr(args, name)) for name in _OF_LOGS}
    defaults = {"gate_lr": default_gate_lr(gates.units)}
    return {
        "objective": object_settings(objective),
        "gates": gate_settings(gates),
        "recovery": _plain(recovery),
        "convergence": None if convergence is None else {**object_settings(convergence), **logs},
        **{name: defaults.get(name) if rate is None else _plain(rate) for name, rate in rates.items()},
    }


def optimizer_settings(optimizer: torch.optim.Optimizer | None) -> Any:
    """Return the class and the defaults of an optimizer that the user has given; None without one."""
    return optimizer and {"_target_": type(optimizer).__qualname__, **_plain(optimizer.defaults)}


def adapter_settings(config: Any) -> Any:
    """Return the settings of adapters of PEFT; None without them."""
    settings = None if config is None else config.to_dict()
    return settings and {name: _plain(value) for name, value in settings.items() if name not in _OF_PLACES}


def _of_object(value: object, *, depth: int) -> dict[str, Any]:
    """Return the class and the settings of an object; those of its parts that are arguments of no name are its own."""
    settings: dict[str, Any] = {"_target_": type(value).__qualname__}
    if dataclasses.is_dataclass(value):
        attributes = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.repr}
    else:
        own = getattr(value, "__dict__", {})
        attributes = {name: one for name, one in own.items() if name not in _OF_MODULES}
        attributes |= dict(value.named_children()) if isinstance(value, nn.Module) else {}
    for name, one in attributes.items():
        if name == "_budget" and dataclasses.is_dataclass(one):
            settings |= {key: inner for key, inner in _of_object(one, depth=depth + 1).items() if key != "_target_"}
        else:
            settings[name.lstrip("_")] = _plain(one, depth=depth + 1)
    return settings


def _plain(value: Any, *, depth: int = 0) -> Any:
    """Return a value as one of numbers, texts, lists and mappings; of an object without settings, its class."""
    if isinstance(value, np.generic):
        value = value.item()  # A checkpoint holds plain values only.
    if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Tensor):
        return _digest(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one, depth=depth + 1) for key, one in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, Collection):
        return [_plain(one, depth=depth + 1) for one in value]
    if isinstance(value, type) or (callable(value) and not isinstance(value, nn.Module)):
        return getattr(value, "__qualname__", type(value).__qualname__)
    is_small = isinstance(value, nn.Module) and not any(True for _ in value.parameters())
    if depth < _DEEPEST and (is_small or dataclasses.is_dataclass(value)):
        return _of_object(value, depth=depth)
    return type(value).__qualname__


def _digest(tensor: Tensor) -> str:
    """Return shape and fingerprint of a tensor."""
    if tensor.is_meta:
        return f"{tuple(tensor.shape)}"
    content = tensor.detach().cpu().double().contiguous().numpy().tobytes()
    return f"{tuple(tensor.shape)} {hashlib.sha256(content).hexdigest()[:12]}"
