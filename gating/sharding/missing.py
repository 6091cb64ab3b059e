"""New weights of a sharded model, such as those of a task head, with the values that one process would give them."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gating.sharding.copies import meta_copy
from gating.structure.edits import fill

__all__ = ["initialize_missing"]


@torch.no_grad()
def initialize_missing(model: PreTrainedModel, names: Iterable[str], *, random_state: Tensor) -> None:
    """Initialize the named parameters of a sharded model, which a checkpoint lacks, in place.

    transformers initializes each shard for itself: with the same random numbers in all processes, and on the device.
    The ``random_state`` is that of the CPU before the model was loaded.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    wanted = {name for name in names if name in parameters}
    if not wanted:
        torch.set_rng_state(random_state)
        return
    copy = meta_copy(model)
    for name, parameter in list(copy.named_parameters(remove_duplicate=False)):
        if name in wanted:
            owner, _, attribute = name.rpartition(".")
            setattr(copy.get_submodule(owner), attribute, nn.Parameter(torch.empty_like(parameter, device="cpu")))
        else:
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]
    for module in copy.modules():
        # Emptied blocks stay as they are.
        if not hasattr(module, "head_slots"):
            module.__dict__["_is_hf_initialized"] = False
    torch.set_rng_state(random_state)
    copy.initialize_weights()
    values = dict(copy.named_parameters(remove_duplicate=False))
    for name in wanted:
        fill(parameters[name].detach(), values[name].detach())
