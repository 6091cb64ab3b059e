"""Models of sentence-transformers in its trainers: the transformer inside, and the weights beside it."""

import sys
from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from gating.errors import InputError
from gating.gates.pass_values import PassValues
from gating.structure.hooks import Handle

__all__ = [
    "hook_passes",
    "is_sentence_model",
    "load_other_weights",
    "other_weights",
    "transformer_of",
    "use_model",
]


def is_sentence_model(model: object) -> TypeGuard[nn.Module]:
    """Return whether an object is a model of sentence-transformers; the package is not imported."""
    package = sys.modules.get("sentence_transformers.base.model")
    return package is not None and isinstance(model, package.BaseModel)


def transformer_of(model: nn.Module) -> Any:
    """Return the transformer inside of a model of sentence-transformers.

    Raises:
        InputError: There is none, or there are several.
    """
    return _holder_of(model).model


def _holder_of(model: nn.Module) -> Any:
    from sentence_transformers.base.modules import Transformer

    found = [module for module in model.modules() if isinstance(module, Transformer)]
    if len(found) != 1:
        raise InputError(
            f"The {type(model).__name__} has {len(found) or 'no'} transformers, as one with a Router: gates are put "
            "on models with one."
        )
    return found[0]


def hook_passes(losses: Mapping[str, nn.Module], model: nn.Module, values: PassValues) -> list[Handle]:
    """Begin a pass of gates with each call of a loss, so that all texts of a step meet the same sample.

    The package calls ``forward`` of the transformer, which skips the hooks of the gates. Losses that cache gradients
    compute each embedding a second time, in the backward pass, with the same random numbers: with those, each call of
    the transformer is a pass.

    Returns:
        Handles of the hooks.
    """
    holders = list(losses.values())
    if any(getattr(module, "uses_gradient_cache", False) for loss in holders for module in loss.modules()):
        holders = [_holder_of(model)]
    handles: list[Handle] = []
    for holder in holders:
        handles.append(holder.register_forward_pre_hook(values.begin_pass))
        handles.append(holder.register_forward_hook(values.end_pass, always_call=True))
    return handles


def use_model(losses: Mapping[str, nn.Module], model: nn.Module) -> None:
    """Give losses a model in place of the same model in a wrapper, such as that of DDP, with which it was trained."""
    for loss in losses.values():
        for module in list(loss.modules()):
            held = module._modules.get("model")
            if held is not model and held is not None and _unwrapped(held) is model:
                module.model = model


def other_weights(model: nn.Module, losses: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the tensors of a training beside those of the transformer: of other modules of the model, and of losses.

    The checkpoints of sentence-transformers do not have those of losses. Other models have none.
    """
    if not is_sentence_model(model):
        return {}
    parts = nn.ModuleDict({"model": model, **{f"loss {name}": loss for name, loss in losses.items()}})
    # A guide of a loss is a model, too, and not trained.
    models = {module for module in parts.modules() if is_sentence_model(module)} - {model}
    known = {
        id(tensor) for one in (transformer_of(model), *models) for tensor in one.state_dict(keep_vars=True).values()
    }
    state = parts.state_dict(keep_vars=True)
    return {name: tensor.detach() for name, tensor in state.items() if id(tensor) not in known}


def load_other_weights(model: nn.Module, losses: Mapping[str, nn.Module], weights: Mapping[str, Tensor]) -> None:
    """Load the tensors of :func:`other_weights` of an earlier process, in place."""
    with torch.no_grad():
        for name, tensor in other_weights(model, losses).items():
            tensor.copy_(weights[name])


def _unwrapped(model: Any) -> nn.Module:
    """Return the model in wrappers of DDP and of ``torch.compile``."""
    while (inner := model._modules.get("module", model._modules.get("_orig_mod"))) is not None:
        model = inner
    return model
