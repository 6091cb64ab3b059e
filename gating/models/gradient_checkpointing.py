"""Gradient checkpointing: activations are recomputed in the backward pass to save memory."""

from transformers import PreTrainedModel

from gating.errors import InputError

__all__ = ["check_gradient_checkpointing", "enable_gradient_checkpointing"]


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
