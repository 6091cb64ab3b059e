"""Wrappers of a model with gates: that of sentence-transformers, adapters of PEFT, and the autocast of accelerate."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gating.errors import InputError
from gating.gates import HeadGates
from gating.sharding.plan import merge_adapters
from gating.structure.blocks import has_no_weight


def base_model(model: nn.Module) -> PreTrainedModel:
    """Return the model of transformers in one that may have adapters of PEFT, or in one of sentence-transformers."""
    if is_sentence_model(model):
        base = _holder_of(model).model
    else:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    if not isinstance(base, PreTrainedModel):
        raise InputError(f"Gates are put on models of transformers, got a {type(base).__name__}.")
    if getattr(base, "_hf_peft_config_loaded", False):
        raise InputError("Adapters of add_adapter() cannot be trained with gates: use peft.get_peft_model(model).")
    return base


def adapter_config(model: nn.Module) -> Any:
    """Return the configuration of a model's adapter, for a new one; None if it has none."""
    if not hasattr(model, "get_base_model"):
        return None
    configs: dict[str, Any] = model.peft_config  # type: ignore[assignment]
    config = next(iter(configs.values()))
    if len(configs) != 1 or not hasattr(model, "merge_and_unload") or config.is_prompt_learning:
        names = ", ".join(configs)
        raise InputError(f"The adapters {names} cannot be merged into the weights: use one that can, such as LoRA.")
    return config


def merged(model: nn.Module) -> PreTrainedModel:
    """Return a model without autocast and wrappers, its adapters merged into its weights in place."""
    model = without_autocast(model)
    return base_model(merge_adapters(model) if hasattr(model, "get_base_model") else model)


def with_new_adapters(model: PreTrainedModel, config: Any) -> nn.Module:
    """Put new adapters on a compact model, in place, and return the ``PeftModel`` around it."""
    from peft import get_peft_model

    config = deepcopy(config)
    # Nothing is left to adapt of a layer whose block has lost all its heads or neurons.
    emptied = [name for name, module in model.named_modules() if has_no_weight(module)]
    if emptied:
        config.exclude_modules = emptied
    return get_peft_model(model, config)


def without_autocast(model: nn.Module) -> nn.Module:
    """Restore the forward pass that accelerate has replaced for mixed precision, in place, and return the model.

    Masked and compact outputs are compared in the precision of the weights. Accelerate's ``unwrap_model`` would also
    remove the decorators of transformers, and leave a mark that keeps the model out of mixed precision later.
    """
    original = model.__dict__.pop("_original_forward", None)
    if original is not None:
        del model.forward
        if model.forward != original:  # It was an attribute of this model before, too.
            model.forward = original
    model.__dict__.pop("_is_accelerate_prepared", None)
    return model


@contextmanager
def own_names(model: nn.Module) -> Iterator[None]:
    """Save weights in a ``with`` block by their names in memory, not by those of their file, ``LayerNorm.gamma``."""
    base: Any = base_model(model)
    conversions = vars(base).get("_weight_conversions")
    base._weight_conversions = []
    try:
        yield
    finally:
        if conversions is None:
            del base._weight_conversions
        else:
            base._weight_conversions = conversions


def is_sentence_model(model: object) -> TypeGuard[nn.Module]:
    """Return whether an object is a model of sentence-transformers; the package is not imported."""
    package = sys.modules.get("sentence_transformers.base.model")
    return package is not None and isinstance(model, package.BaseModel)


def _holder_of(model: nn.Module) -> Any:
    """Return the module of a model of sentence-transformers that has the transformer as its ``model``."""
    from sentence_transformers.base.modules import Transformer

    found = [module for module in model.modules() if isinstance(module, Transformer)]
    if len(found) != 1:
        number = len(found) or "no"
        raise InputError(f"The {type(model).__name__} has {number} transformers, as one with a Router; gates need one.")
    return found[0]


def hook_passes(losses: Mapping[str, nn.Module], model: nn.Module, gates: HeadGates) -> None:
    """Begin a pass of gates with each call of a loss, for all its texts: sentence-transformers skips their hooks."""
    holders = list(losses.values()) if is_sentence_model(model) else []
    # Losses that cache gradients compute each embedding a second time in the backward pass.
    if any(getattr(module, "uses_gradient_cache", False) for loss in holders for module in loss.modules()):
        holders = [_holder_of(model)]
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
    """Return the tensors of other modules of a sentence model than the transformer, and of losses."""
    if not is_sentence_model(model):
        return {}
    parts = nn.ModuleDict({"model": model, **{f"loss {name}": loss for name, loss in losses.items()}})
    # A guide of a loss is a model, too, and not trained.
    models = {module for module in parts.modules() if is_sentence_model(module)} - {model}
    known = {
        id(tensor) for one in (_holder_of(model).model, *models) for tensor in one.state_dict(keep_vars=True).values()
    }
    # Once each: losses hold the model, too, in training in a wrapper whose name a fresh process has not.
    own = {id(tensor): (name, tensor) for name, tensor in reversed(parts.state_dict(keep_vars=True).items())}
    return {name: tensor.detach() for number, (name, tensor) in own.items() if number not in known}


def load_other_weights(model: nn.Module, losses: Mapping[str, nn.Module], weights: Mapping[str, Tensor]) -> None:
    """Load the tensors of :func:`other_weights` of an earlier process, in place."""
    with torch.no_grad():
        for name, tensor in other_weights(model, losses).items():
            tensor.copy_(weights[name])
