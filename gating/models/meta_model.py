"""Models without weights, to count heads and check settings before anything is loaded."""

import os

import torch
from transformers import PreTrainedModel

from gating.errors import InputError, explain
from gating.models.configs import check_layers
from gating.models.sources import ModelSource

__all__ = ["check_gradient_checkpointing", "check_memory", "enable_gradient_checkpointing", "make_meta_model"]


def make_meta_model(source: ModelSource, auto_class: type) -> PreTrainedModel:
    """Return a model without weights, on the meta device.

    Example:
        >>> from transformers import AutoModelForCausalLM
        >>> from gating.models.sources import NewModel
        >>> make_meta_model(NewModel("gpt2", config={"n_layer": 1}), AutoModelForCausalLM).device
        device(type='meta')

    Raises:
        ValueError: The model has too many layers, or transformers cannot create it, or has no class of this Auto class
            for its family.
    """
    config = source.load_config()
    check_layers(config)
    families = getattr(auto_class, "_model_mapping", None)
    if families is not None and type(config) not in families:
        raise InputError(
            f"The model {source.title} cannot be used for this task ({auto_class.__name__}): transformers has no such "
            f"model of the family {config.model_type}. Choose another model, or another task."
        )
    try:
        with torch.device("meta"):
            model: PreTrainedModel = auto_class.from_config(config)  # type: ignore[attr-defined]
    except Exception as error:  # A wrong configuration raises errors of many types.
        reason = explain(error)
        raise InputError(
            f"The model {source.title} cannot be used for this task ({auto_class.__name__}): {reason}"
        ) from error
    return model


def check_memory(meta_model: PreTrainedModel, *, title: str) -> None:
    """Check that the weights of a model fit into the memory of this machine.

    Raises:
        ValueError: They are larger than all of it.
    """
    needed = sum(parameter.numel() for parameter in meta_model.parameters()) * torch.float32.itemsize
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise InputError(
            f"The model {title} has {needed / 1e9:,.0f} GB of weights in full precision, and this machine has "
            f"{there / 1e9:,.0f} GB of memory. Take a smaller model, or trainer=fsdp on several devices."
        )


def check_gradient_checkpointing(meta_model: PreTrainedModel, *, compiled: bool) -> None:
    """Check that a model supports gradient checkpointing, also if it will be compiled.

    Raises:
        ValueError: transformers does not support it for models of this class, or torch not in a compiled model.
    """
    if compiled:
        raise InputError(
            "gradient_checkpointing=true cannot be combined with compile=true: torch does not support gates in both; "
            "choose one of them."
        )
    if not meta_model.supports_gradient_checkpointing:
        raise InputError(
            f"gradient_checkpointing=true: {type(meta_model).__name__} does not support it; leave it out, and take a "
            "smaller data.batch_size with trainer.accumulate_grad_batches=2 instead."
        )


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Enable gradient checkpointing of a model, in place."""
    # transformers deprecated the second name during version 5.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    # Reentrant checkpoints lose gradients where a layer's inputs need none, and cannot be compiled.
    enable({"use_reentrant": False})
