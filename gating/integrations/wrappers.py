"""Wrappers of a model with gates: adapters of PEFT, and the autocast of accelerate."""

from copy import deepcopy
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils.import_utils import is_peft_available

from gating.errors import InputError
from gating.integrations.sentences import holder_of, is_sentence_model
from gating.structure.blocks import has_no_weight

__all__ = ["adapter_config", "base_model", "merged", "with_new_adapters", "without_autocast"]


def base_model(model: nn.Module) -> PreTrainedModel:
    """Return the model of transformers in one that may have adapters of PEFT, or in one of sentence-transformers.

    Raises:
        InputError: There is none, or it has adapters that are not those of a ``PeftModel`` around it.
    """
    if is_sentence_model(model):
        base = holder_of(model).model
    else:
        base = model.get_base_model() if _is_wrapped(model) else model  # type: ignore[operator]
    if not isinstance(base, PreTrainedModel):
        raise InputError(f"Gates are put on models of transformers, got a {type(base).__name__}.")
    if getattr(base, "_hf_peft_config_loaded", False):
        raise InputError("Adapters of add_adapter() cannot be trained with gates: use peft.get_peft_model(model).")
    return base


def adapter_config(model: nn.Module) -> Any:
    """Return the configuration of a model's adapter, for a new one; None if it has none.

    Raises:
        InputError: The model has several adapters, or one that cannot be merged.
    """
    if not _is_wrapped(model):
        return None
    configs: dict[str, Any] = model.peft_config  # type: ignore[assignment]
    config = next(iter(configs.values()))
    if len(configs) != 1 or not hasattr(model, "merge_and_unload") or config.is_prompt_learning:
        raise InputError(
            f"The adapters {', '.join(configs)} cannot be merged into the weights, which the removal of heads needs: "
            "train with one of a kind that can, such as LoRA."
        )
    return deepcopy(config)


def merged(model: nn.Module) -> PreTrainedModel:
    """Merge the adapters of a model into its weights, in place, and return the model without them."""
    if _is_wrapped(model):
        return model.merge_and_unload(safe_merge=True)  # type: ignore[operator]
    return base_model(model)


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
