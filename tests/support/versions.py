"""What older versions of transformers lack, or name otherwise."""

from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel
from transformers.utils import is_sentencepiece_available

from gating.families.registry import registered_spec

__all__ = [
    "HAS_GROUPED_MM",
    "class_of_transformers",
    "enable_checkpointing",
    "needs_marian",
    "run_experts_on_cpu",
    "skip_older_layout",
]

# Attention whose older layout is refused.
_REFUSED_IN_OLDER = ("CodeGenAttention", "EomtAttention")
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
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    return found


def skip_older_layout(model: PreTrainedModel) -> None:
    """Skip the test if a class of a model has an older layout, whose heads cannot be removed."""
    for module in model.modules():
        name = type(module).__name__
        if name in _REFUSED_IN_OLDER and registered_spec(module) is None:
            pytest.skip(f"transformers {transformers.__version__} has another {name}")


def enable_checkpointing(model: PreTrainedModel, options: dict[str, Any] | None = None) -> None:
    """Let a model compute its activations again in the backward pass; older versions have the former name."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(options)


def run_experts_on_cpu(model: PreTrainedModel) -> None:
    """Give experts an implementation that torch has for the CPU, where transformers 5.10 takes one that it has not."""
    if getattr(model.config, "_experts_implementation", None) == "grouped_mm" and not HAS_GROUPED_MM:
        model.set_experts_implementation("eager")
