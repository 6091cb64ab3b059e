"""Models of sentence-transformers in its trainers: the transformer inside, and the weights beside it."""

import sys
from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from gating.errors import InputError
from gating.gates import HeadGates

__all__ = ["hook_passes", "holder_of", "is_sentence_model", "load_other_weights", "other_weights", "use_model"]


def is_sentence_model(model: object) -> TypeGuard[nn.Module]:
    """Return whether an object is a model of sentence-transformers; the package is not imported."""
    package = sys.modules.get("sentence_transformers.base.model")
    return package is not None and isinstance(model, package.BaseModel)


def holder_of(model: nn.Module) -> Any:
    """Return the module of a model of sentence-transformers that has the transformer as its ``model``.

    Raises:
        InputError: There is none, or there are several.
    """
    from sentence_transformers.base.modules import Transformer

    found = [module for module in model.modules() if isinstance(module, Transformer)]
    if len(found) != 1:
        raise InputError(
            f"The {type(model).__name__} has {len(found) or 'no'} transformers, as one with a Router: gates are put "
            "on models with one."
        )
    return found[0]


def hook_passes(losses: Mapping[str, nn.Module], model: nn.Module, gates: HeadGates) -> None:
    """Begin a pass of gates with each call of a loss, so that all texts of a step meet the same sample.

    The package calls ``forward`` of the transformer, which skips the hooks of the gates. Losses that cache gradients
    compute each embedding a second time, in the backward pass, with the same random numbers: with those, each call of
    the transformer is a pass.
    """
    holders = list(losses.values())
    if any(getattr(module, "uses_gradient_cache", False) for loss in holders for module in loss.modules()):
        holders = [holder_of(model)]
    for holder in holders:
        gates.keep_until_removed(holder.register_forward_pre_hook(gates.pass_values.begin_pass))
        gates.keep_until_removed(holder.register_forward_hook(gates.pass_values.end_pass, always_call=True))


def use_model(losses: Mapping[str, nn.Module], model: nn.Module) -> None:
    """Give losses a model in place of the same model in a wrapper, such as that of DDP, with which it was trained."""
    from accelerate.utils import extract_model_from_parallel

    for module in [module for loss in losses.values() for module in loss.modules()]:
        held = module._modules.get("model")
        if held is not None and extract_model_from_parallel(held, keep_torch_compile=False) is model:
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
        id(tensor) for one in (holder_of(model).model, *models) for tensor in one.state_dict(keep_vars=True).values()
    }
    state = parts.state_dict(keep_vars=True)
    return {name: tensor.detach() for name, tensor in state.items() if id(tensor) not in known}


def load_other_weights(model: nn.Module, losses: Mapping[str, nn.Module], weights: Mapping[str, Tensor]) -> None:
    """Load the tensors of :func:`other_weights` of an earlier process, in place."""
    with torch.no_grad():
        for name, tensor in other_weights(model, losses).items():
            tensor.copy_(weights[name])
