"""Models without weights, to count heads and check settings before anything is loaded."""

import torch
from transformers import PreTrainedModel

from gating.errors import InputError, explain, is_input_error, shorten
from gating.models.sources import ModelSource

__all__ = ["enable_gradient_checkpointing", "make_meta_model"]


def make_meta_model(source: ModelSource, auto_class: type) -> PreTrainedModel:
    """Return a model without weights, on the meta device.

    Example:
        >>> from transformers import AutoModelForCausalLM
        >>> from gating.models.sources import NewModel
        >>> make_meta_model(NewModel("gpt2", config={"n_layer": 1}), AutoModelForCausalLM).device
        device(type='meta')

    Raises:
        ValueError: transformers cannot create the model, or has no class of this Auto class for its family.
    """
    try:
        config = source.load_config()
        with torch.device("meta"):
            model: PreTrainedModel = auto_class.from_config(config)  # type: ignore[attr-defined]
    except Exception as error:  # A wrong configuration raises errors of many types.
        if is_input_error(error):
            raise
        # Some list all families.
        reason = shorten(explain(error), most=300)
        raise InputError(
            f"The model {source.title} cannot be used for this task ({auto_class.__name__}): {reason}"
        ) from error
    return model


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Enable gradient checkpointing of a model, in place."""
    # Reentrant checkpoints lose gradients where a layer's inputs need none, and cannot be compiled.
    model.activation_checkpointing_enable({"use_reentrant": False})
