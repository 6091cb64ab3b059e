"""What older versions of transformers lack, or name otherwise."""

import inspect
from typing import Any, NoReturn

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.utils import is_sentencepiece_available

from gating.families.registry import registered_spec

__all__ = [
    "HAS_GROUPED_MM",
    "HAS_SHARDING",
    "OLDER",
    "class_of_transformers",
    "enable_checkpointing",
    "loading_options",
    "needs_marian",
    "run_experts_on_cpu",
    "skip_older_fault",
    "skip_older_layout",
    "skip_without_probe",
    "with_token_types",
]

# Tests skip nothing in the newest version, so that nobody misses what it changes.
OLDER = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 24)
# Whether transformers can cut a model over processes.
HAS_SHARDING = "fsdp_size" in inspect.signature(DistributedConfig).parameters
# Attention whose older layout is refused.
_REFUSED_IN_OLDER = ("CodeGenAttention", "EomtAttention")
# Faults of older versions, by a part of the message of who meets them.
_FAULTS = {
    "float division by zero": "divides by the width of emptied blocks when it loads",
    "does not recognize this architecture": "has no Auto class for this part of a model",
    "RecurrentGemmaForCausalLM gives other outputs": "loads RecurrentGemma without its rotary frequencies",
    "cannot describe ModernBert": "cannot describe ModernBERT without a layer that changes the order of their kinds",
}
# Models that no batch is made for in older versions, which gating asks for.
_WITHOUT_PROBE = {
    "Kosmos2ForConditionalGeneration": "does not count the tokens of an image for Kosmos-2",
    "VideoLlavaForConditionalGeneration": "has another name for the images of Video-LLaVA",
}
# Torch 2.8 has it for GPUs alone.
HAS_GROUPED_MM = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 9)
needs_marian = pytest.mark.skipif(
    transformers.__version__.startswith("5.0.") and not is_sentencepiece_available(),
    reason="transformers 5.0 loads no tokenizer of Marian without sentencepiece",
)


def class_of_transformers(name: str) -> Any:
    """Return a class of transformers, or skip the test: this version has none of that name."""
    found = getattr(transformers, name, None)
    if found is None:
        assert OLDER, f"transformers has no {name}"
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    return found


def skip_older_layout(model: PreTrainedModel) -> None:
    """Skip the test if a class of a model has an older layout, whose heads cannot be removed."""
    for module in model.modules():
        name = type(module).__name__
        if OLDER and name in _REFUSED_IN_OLDER and registered_spec(module) is None:
            pytest.skip(f"transformers {transformers.__version__} has another {name}")


def skip_older_fault(error: Exception) -> NoReturn:
    """Skip the test after an error that is due to an older version; raise any other."""
    reason = next((reason for part, reason in _FAULTS.items() if part in str(error)), None)
    if reason is None or not OLDER:
        raise error
    pytest.skip(f"transformers {transformers.__version__} {reason}")


def skip_without_probe(model: PreTrainedModel) -> None:
    """Skip the test if no batch is made for a model in older versions."""
    if OLDER and (reason := _WITHOUT_PROBE.get(type(model).__name__)):
        pytest.skip(f"transformers {transformers.__version__} {reason}")


def loading_options(model: PreTrainedModel) -> dict[str, str]:
    """Return arguments to load a model with, where older versions take SDPA, which does not cap scores, or GPU code."""
    config, options = model.config.get_text_config(decoder=True), {}
    if OLDER and getattr(config, "attn_logit_softcapping", None):
        options["attn_implementation"] = "eager"
    if OLDER and not HAS_GROUPED_MM and getattr(config, "_experts_implementation", None):
        options["experts_implementation"] = "eager"
    return options


def with_token_types(model: PreTrainedModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the types of tokens to a batch, without which older versions do not train PaliGemma and Gemma 3."""
    if not OLDER or model.config.model_type not in ("paligemma", "gemma3") or "pixel_values" not in batch:
        return batch
    return batch | {"token_type_ids": (batch["input_ids"] == model.config.image_token_id).long()}


def enable_checkpointing(model: PreTrainedModel, options: dict[str, Any] | None = None) -> None:
    """Let a model compute its activations again in the backward pass; older versions have the former name."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(options)


def run_experts_on_cpu(model: PreTrainedModel) -> None:
    """Give experts an implementation that torch has for the CPU, where transformers 5.10 takes one that it has not."""
    if getattr(model.config, "_experts_implementation", None) == "grouped_mm" and not HAS_GROUPED_MM:
        model.set_experts_implementation("eager")
