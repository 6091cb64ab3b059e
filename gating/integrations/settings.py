"""Settings of a trainer with gates that decide its result, as plain values for a checkpoint."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, TrainingArguments

from gating.integrations.descriptions import describe, describe_object, digest
from gating.integrations.sentences import is_sentence_model, sentence_settings
from gating.integrations.wrappers import base_model
from gating.objectives.parameter_groups import default_gate_lr
from gating.objectives.search import Search
from gating.storage.identity import table_digests

__all__ = ["phase_settings", "search_settings", "training_settings", "weight_digests"]

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
# These settings decide in spite of their beginning.
_DECIDES = ("dataloader_drop_last",)
# They say when the gates are checked, and when the best model is looked for.
_OF_LOGS, _OF_EVALUATIONS = ("logging_strategy", "logging_steps"), ("eval_strategy", "eval_steps", "eval_delay")
# Attributes of gates that are settings.
_OF_GATES = ("units", "group_size", "group_queries", "temperature", "stretch_limits", "init_prob_open")
# These settings of adapters say where they come from.
_OF_PLACES = ("peft_version", "base_model_name_or_path", "auto_mapping", "runtime_config", "inference_mode", "revision")
# These settings of a configuration say how the work is done, what is returned, and what a training sets by itself.
_FREE_OF_MODELS = (
    *("_", "attn_implementation", "transformers_version", "architectures", "problem_type", "use_cache"),
    # These belong to units that were removed from another model with this configuration.
    *("head_gating", "auto_map"),
    *("output_", "return_dict", "pad_token_id", "bos_token_id", "eos_token_id"),
)
# About as many bytes of the weights below adapters, and of a teacher, are read, evenly spread: about a second.
_MOST_BYTES = 2**30


def _argument_settings(args: TrainingArguments) -> dict[str, Any]:
    """Return the arguments of a trainer that decide its result, also those of a class made from transformers'."""
    names = [field.name for field in dataclasses.fields(args)]
    chosen = [name for name in names if not name.startswith(_FREE) or name in _DECIDES]
    chosen += _OF_EVALUATIONS if _evaluation_decides(args) else ()
    return {name: describe(getattr(args, name)) for name in chosen} | {"world_size": args.world_size}


def search_settings(
    search: Search, *, recovery: float, rates: Mapping[str, float | None], args: TrainingArguments
) -> dict[str, Any]:
    """Return the settings of a search that has not begun, whose criterion is asked at the logged steps of ``args``."""
    gates, logs = search.gates, {name: describe(getattr(args, name)) for name in _OF_LOGS}
    defaults = {"gate_lr": default_gate_lr(gates.units)}
    return {
        "objective": describe_object(search.objective),
        "gates": {
            **{name: describe(getattr(gates, name)) for name in _OF_GATES},
            "blocks": dict(zip(gates.block_names, gates.block_sizes, strict=True)),
        },
        "recovery": describe(recovery),
        "convergence": None if search.convergence is None else {**describe_object(search.convergence), **logs},
        **{name: defaults.get(name) if rate is None else describe(rate) for name, rate in rates.items()},
    }


def phase_settings(trainer: Any, *, adapters: Any, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """Return the settings of a trainer as they are before a phase.

    Args:
        trainer: The trainer.
        adapters: Configuration of adapters of PEFT; None without them.
        optimizer: The optimizer that the user has given; None without one.
    """
    of_adapters = {} if adapters is None else adapters.to_dict()
    early_stopping = [one for one in trainer.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback)]
    return {
        "args": _argument_settings(trainer.args),
        "adapters": {name: describe(one) for name, one in of_adapters.items() if name not in _OF_PLACES} or None,
        "optimizer": optimizer and {"_target_": type(optimizer).__qualname__, **describe(optimizer.defaults)},
        "train_dataset": _data_settings(trainer.train_dataset),
        # Their counters change.
        "early_stopping": [[one.early_stopping_patience, one.early_stopping_threshold] for one in early_stopping],
    }


def training_settings(trainer: Any, *, has_adapters: bool, losses: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Return the settings of the model with gates, functions and evaluation data of a trainer before its search."""
    evaluation = None
    if _evaluation_decides(trainer.args):
        evaluation = {
            "eval_dataset": _data_settings(trainer.eval_dataset),
            "compute_metrics": describe(trainer.compute_metrics),
            "preprocess_logits_for_metrics": describe(trainer.preprocess_logits_for_metrics),
        }
    of_sentences = sentence_settings(trainer.model, losses) if is_sentence_model(trainer.model) else {}
    return {
        "model": _model_settings(trainer.model, has_adapters=has_adapters) | of_sentences,
        "data_collator": describe(trainer.data_collator),
        "compute_loss_func": describe(trainer.compute_loss_func),
        "optimizer_cls_and_kwargs": describe(trainer.optimizer_cls_and_kwargs),
        "evaluation": evaluation,
    }


def _model_settings(model: nn.Module, *, has_adapters: bool) -> dict[str, Any]:
    """Return the configuration of a model, its dropout, and which weights are trained; below adapters, the weights."""
    parameters = {name: one for name, one in model.named_parameters() if "head_gates" not in name.split(".")}
    settings: dict[str, Any] = {
        "config": _of_config(describe(base_model(model).config.to_dict())),
        "dropout": {
            name: one.p for name, one in model.named_modules() if isinstance(one, nn.modules.dropout._DropoutNd)
        },
        "is_trained": {name: one.requires_grad for name, one in parameters.items()},
    }
    if has_adapters:
        frozen = [(name, one) for name, one in parameters.items() if not one.requires_grad]
        # Weights of which adapters have a copy are not used.
        used = {
            name: one for name, one in [*frozen, *model.named_buffers()] if "original_module" not in name.split(".")
        }
        settings["weights"] = weight_digests(used)
    return settings


def weight_digests(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the shape and a fingerprint of each tensor of a model that a training reads and does not change."""
    step = -(-sum(one.nbytes for one in weights.values()) // _MOST_BYTES) or 1
    return {name: digest(one, step=step) for name, one in weights.items()}


def _data_settings(table: Any) -> dict[str, Any] | None:
    """Return the number of examples of a table or of each, and of a ``datasets.Dataset`` the columns and transform."""
    if isinstance(table, dict):
        return {name: _data_settings(one) for name, one in table.items()}
    digests = table_digests(table)
    form = getattr(table, "format", None)
    options = form.get("format_kwargs") if isinstance(form, dict) else None
    return digests and {**digests, "transform": describe((options or {}).get("transform"))}


def _evaluation_decides(args: TrainingArguments) -> bool:
    return args.load_best_model_at_end or args.lr_scheduler_type == "reduce_lr_on_plateau"


def _of_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a model's configuration and of those in it that decide the result."""
    chosen = {name: one for name, one in values.items() if not name.startswith(_FREE_OF_MODELS)}
    return {name: _of_config(one) if isinstance(one, dict) else one for name, one in chosen.items()}
