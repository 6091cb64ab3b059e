"""Wrappers of a model with gates: adapters of PEFT, and the autocast of accelerate."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.import_utils import is_peft_available

from gating.errors import InputError
from gating.integrations.sentences import is_sentence_model, transformer_of
from gating.structure.blocks import has_no_weight

__all__ = [
    "adapter_config",
    "base_model",
    "has_own_adapters",
    "load_own_adapters",
    "merged",
    "with_new_adapters",
    "without_autocast",
]


def base_model(model: nn.Module) -> PreTrainedModel:
    """Return the model of transformers in one that may have adapters of PEFT, or in one of sentence-transformers.

    Raises:
        InputError: There is none.
    """
    if is_sentence_model(model):
        base = transformer_of(model)
        if _is_wrapped(base):
            raise InputError(
                f"The transformer of this {type(model).__name__} is in a {type(base).__name__}: give the model without "
                "adapters, and put them on with model.add_adapter(config)."
            )
    else:
        base = model.get_base_model() if _is_wrapped(model) else model  # type: ignore[operator]
    if not isinstance(base, PreTrainedModel):
        raise InputError(f"Gates are put on models of transformers, got a {type(base).__name__}.")
    return base


def adapter_config(model: nn.Module) -> Any:
    """Return the configuration of a model's adapters, for new ones; None if it has none.

    Raises:
        InputError: The model has several adapters, or adapters that cannot be merged.
    """
    adapted = model if _is_wrapped(model) else base_model(model)
    if not _is_wrapped(adapted) and not has_own_adapters(adapted):
        return None
    configs: dict[str, Any] = adapted.peft_config  # type: ignore[assignment]
    if len(configs) != 1:
        raise InputError(f"The model has the adapters {', '.join(configs)}: train with one, which can be merged.")
    (config,) = configs.values()
    can_merge = hasattr(model, "merge_and_unload") if _is_wrapped(model) else config.peft_type == "LORA"
    if not can_merge or config.is_prompt_learning:
        raise InputError(
            f"Adapters of the kind {config.peft_type} cannot be merged into the weights, which the removal of heads "
            "needs: use LoRA."
        )
    return deepcopy(config)


def has_own_adapters(model: nn.Module) -> bool:
    """Return whether adapters were put on a model of transformers by its ``add_adapter``, without a ``PeftModel``."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def merged(model: nn.Module) -> PreTrainedModel:
    """Merge the adapters of a model into its weights, in place, and return the model without them."""
    if _is_wrapped(model):
        return model.merge_and_unload(safe_merge=True)  # type: ignore[operator]
    base: Any = base_model(model)
    if has_own_adapters(base):
        for name, module in list(base.named_modules()):
            if hasattr(module, "unload_and_optionally_merge_module"):
                # Whole modules that are trained beside the adapters.
                whole = module.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
                base.set_submodule(name, whole)
            elif hasattr(module, "base_layer"):
                module.merge(safe_merge=True)
                base.set_submodule(name, module.get_base_layer())
        del base.peft_config
        base._hf_peft_config_loaded = False
    return base


def with_new_adapters(model: PreTrainedModel, config: Any, *, like: nn.Module) -> nn.Module:
    """Put new adapters on a compact model, in place, and return it in a ``PeftModel`` if ``like`` is one."""
    from peft import get_peft_model

    config = deepcopy(config)
    # Nothing is left to adapt of a layer whose block has lost all its heads or neurons.
    emptied = [name for name, module in model.named_modules() if has_no_weight(module)]
    if emptied:
        config.exclude_modules = emptied
    if _is_wrapped(like):
        return get_peft_model(model, config)
    model.add_adapter(config)
    return model


def load_own_adapters(model: PreTrainedModel, checkpoint: Path) -> None:
    """Load the weights of a model's own adapters from a checkpoint, in place."""
    from peft import set_peft_model_state_dict

    (name,) = model.peft_config
    weights = safetensors.torch.load_file(checkpoint / "adapter_model.safetensors")
    state = {key.removeprefix("base_model.model."): tensor for key, tensor in weights.items()}
    set_peft_model_state_dict(model, state, adapter_name=name)


def without_autocast(model: nn.Module) -> nn.Module:
    """Restore the forward pass that accelerate has replaced for mixed precision, in place, and return the model.

    Masked and compact outputs are compared in the precision of the weights, and the compact model has a class of its
    own. Accelerate's ``unwrap_model`` would also remove the decorators of transformers from the forward pass, and leave
    a mark that keeps the model out of mixed precision in the next training.
    """
    original = model.__dict__.pop("_original_forward", None)
    if original is not None:
        del model.forward
        if model.forward != original:  # It was an attribute of this model before, too.
            model.forward = original
    model.__dict__.pop("_is_accelerate_prepared", None)
    return model


def _is_wrapped(model: nn.Module) -> bool:
    if not is_peft_available():
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)
