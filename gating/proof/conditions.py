"""Conditions of a model that loses units: not wrapped, whole, with values, without adapters."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from gating.errors import InputError, InputTypeError
from gating.families.layouts import without_adapter

_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "OptimizedModule", "PeftModel")


def check_not_wrapped(model: nn.Module) -> None:
    """Raise ``ValueError`` for a wrapped or dispatched model, ``TypeError`` for an object that is not a module."""
    if not isinstance(model, nn.Module):
        raise InputTypeError(f"The model must be a torch.nn.Module, got a {type(model).__name__}.")
    for ancestor in type(model).__mro__:
        if ancestor.__name__ in _WRAPPERS:
            raise InputError(
                f"The model is wrapped in {ancestor.__name__}: pass the one inside, model.module, model._orig_mod or "
                "model.get_base_model(); adapters are merged by model.merge_and_unload()."
            )
    # Such a pass hides a new forward of the module's class, and weights that are offloaded are on the meta device.
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        raise InputError(
            "accelerate has replaced forward passes, as of a model that device_map spreads over devices or offloads: "
            "load it without device_map, on one device. The compact folder can be loaded with device_map."
        )
    for name, parameter in model.named_parameters():
        # Those of FSDP2 over all processes are taken; no others are.
        if hasattr(parameter, "full_tensor") and not (is_sharded(model) and is_shard(parameter)):
            raise InputError(
                f"{name} is distributed by tensor parallelism, or over groups of processes: gates need the whole heads "
                "of each layer. Shard the model by FSDP2 alone, as gating.sharding.shard_model(model) does."
            )


def part_of_transformers(model: nn.Module) -> str:
    """Return the code that gives a model of transformers inside a module, or an empty text if there is none."""
    names = (name for name, module in model.named_modules() if isinstance(module, PreTrainedModel))
    return next((f"model.get_submodule({name!r})" for name in names), "")


def check_whole(model: nn.Module, *, remedy: str) -> None:
    """Raise ``ValueError`` for a model that FSDP2 has cut over several processes."""
    if is_sharded(model):
        raise InputError(f"The model is sharded (FSDPModule): {remedy}.")


def is_sharded(model: nn.Module) -> bool:
    """Return whether the parameters of a model are cut over several processes by FSDP2."""
    # The class is told by its name, since some builds of torch have no distributed tensors.
    return any(ancestor.__name__ == "FSDPModule" for ancestor in type(model).__mro__)


def is_shard(weight: Any) -> bool:
    """Return whether a weight is cut along its first dimension over the processes of one group."""
    return hasattr(weight, "full_tensor") and weight.device_mesh.ndim == 1 and weight.placements[0].is_shard(dim=0)


def check_no_adapters(model: nn.Module) -> None:
    """Raise ``ValueError`` for a model with adapters, which have not been merged into the weights yet."""
    for name, module in model.named_modules():
        if without_adapter(module) is not module or hasattr(module, "original_module"):
            raise InputError(
                f"{name} has an adapter ({type(module).__module__.partition('.')[0]}'s {type(module).__name__}): merge "
                "adapters first (PEFT: model = peft_model.merge_and_unload()), then prune the model."
            )


def check_stays(model: nn.Module) -> None:
    """Raise ``ValueError`` for a model that replaces its attention modules in a forward pass, as BigBird does.

    At the first short input, its block-sparse attention permanently becomes full attention, but not in its
    configuration.
    """
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(module, "set_attention_type") and getattr(config, "attention_type", None) == "block_sparse":
            raise InputError(
                f"{type(model).__name__} replaces its block-sparse attention at the first short input, and its "
                "configuration does not record it: load it with attention_type='original_full'."
            )


def check_has_values(model: nn.Module) -> None:
    """Raise ``ValueError`` for a model on the meta device, whose parameters have no values."""
    name = next((name for name, parameter in model.named_parameters() if parameter.is_meta), None)
    if name is not None:
        raise InputError(
            f"{type(model).__name__} has no values yet: {name} is on the meta device. Load its weights first."
        )
