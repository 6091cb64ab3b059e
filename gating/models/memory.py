"""Training in less memory: activations that are computed again instead of kept."""

from transformers import PreTrainedModel

from gating.errors import InputError

__all__ = ["check_checkpointing", "save_memory"]


def check_checkpointing(blueprint: PreTrainedModel, *, compiled: bool) -> None:
    """Make sure that a model can compute its activations again instead of keeping them.

    Raises:
        ValueError: transformers cannot do that with models of this class, or torch not in a compiled one.
    """
    if compiled:
        raise InputError(
            "gradient_checkpointing=true does not go with compile=true: torch cannot take gates through both; "
            "choose one of them."
        )
    if not blueprint.supports_gradient_checkpointing:
        raise InputError(
            f"gradient_checkpointing=true: {type(blueprint).__name__} does not offer it; leave it out, and take a "
            "smaller data.batch_size with trainer.accumulate_grad_batches=2 instead."
        )


def save_memory(model: PreTrainedModel) -> None:
    """Let a model compute its activations again in the backward pass instead of keeping them, in place."""
    # The name that transformers 5 began with is deprecated by now.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    # The other kind loses gradients where a layer's inputs need none, and does not go with compiling.
    enable({"use_reentrant": False})
