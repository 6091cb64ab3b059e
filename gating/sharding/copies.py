"""Copies of a sharded model: on the meta device, cut over the same processes, and whole; and its new weights."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import cast

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedConfig, PreTrainedModel

from gating.errors import OperationError
from gating.gates.attachment import CHILD_NAME
from gating.loader.saving import indivisible_left_out, is_indivisible
from gating.structure.blocks import share_specs
from gating.structure.edits import fill, whole

# A whole model is held three times at the end of a run: to save it, to load it for a check, and dense for timings.
_COPIES = 3
_MEMORY, _GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def whole_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    """Return the class of a model before FSDP2 has changed it."""
    cls = next(cls for cls in type(model).__mro__ if not issubclass(cls, FSDPModule))
    return cast("type[PreTrainedModel]", cls)


def meta_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model on the meta device that is built from the configuration of a sharded one, which is whole itself.

    Training modes, frozen parameters, gradient checkpointing and discovered layouts are those of the model.
    """
    with torch.device("meta"):
        copy: PreTrainedModel = whole_class(model)._from_config(config_without_sharding(model))
    share_specs(model, copy)
    if model.can_generate():
        copy.generation_config = deepcopy(model.generation_config)
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters(remove_duplicate=False))
    for name, module in copy.named_modules():
        if name not in modules:
            continue
        module.training = modules[name].training
        for attribute in ("gradient_checkpointing", "_gradient_checkpointing_func"):
            if hasattr(modules[name], attribute):
                setattr(module, attribute, getattr(modules[name], attribute))
    for name, parameter in copy.named_parameters():
        if name in parameters:
            parameter.requires_grad_(parameters[name].requires_grad)
    return copy


def config_without_sharding(model: PreTrainedModel) -> PreTrainedConfig:
    """Return a copy of the configuration of a model, as if no process had cut it."""
    config: PreTrainedConfig = deepcopy(model.config)
    vars(config).pop("distributed_config", None)
    return config


def untrained_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a whole model of the shapes of a sharded one with random weights, for timings in one process."""
    copy: PreTrainedModel = whole_class(model)._from_config(config_without_sharding(model))
    share_specs(model, copy)
    moved: PreTrainedModel = copy.to(model.device, model.dtype)  # type: ignore[arg-type]
    return moved


def tensors_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the parameters and buffers of a sharded model by name, without its gates and without copies.

    A state dict of the module itself, which also cuts parameters again that a forward pass has left whole.
    """
    # Tables of positions are in no state dict.
    found: dict[str, Tensor] = {**model.state_dict(), **dict(model.named_buffers())}
    return {name: tensor for name, tensor in found.items() if not name.startswith(f"{CHILD_NAME}.")}


def shard_copy(
    copy: PreTrainedModel, model: PreTrainedModel, tensors: Mapping[str, Tensor], *, fresh: bool = False
) -> None:
    """Cut a copy over the same processes as a model, and put shards and buffers into it, in place.

    The ``tensors`` are a shard for each parameter of the copy, and its buffers. With ``fresh``, parameters of other
    shapes, which are loaded later, get shards without values.
    """
    fitting = {name: _fitting(tensors, name, empty, copy, fresh) for name, empty in copy.state_dict().items()}
    tensors = {**tensors, **fitting}
    with indivisible_left_out(copy):
        copy.maybe_distribute_model(copy, model.config.distributed_config, model._mesh_manager)
    _put(copy, tensors)


def _put(copy: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Give a model on the meta device the tensors with the names of its own, in place."""
    names = copy.state_dict().keys()
    copy.load_state_dict({name: tensors[name] for name in names}, assign=True)
    copy.tie_weights()
    for full_name, _ in list(copy.named_buffers()):
        if full_name not in names:
            owner, _, name = full_name.rpartition(".")
            copy.get_submodule(owner).register_buffer(name, tensors[full_name], persistent=False)


def shard_like(tensor: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return a tensor that all processes have, cut as the other parameters of a model are."""
    if is_indivisible(tensor):
        return tensor.detach()
    other = next(other for other in tensors.values() if isinstance(other, DTensor))
    # Each process cuts its own copy, without communication.
    return distribute_tensor(tensor.detach(), other.device_mesh, other.placements, src_data_rank=None)


def _fitting(tensors: Mapping[str, Tensor], name: str, empty: Tensor, copy: nn.Module, fresh: bool) -> Tensor:
    """Return the loaded tensor for one on the meta device, or make the placeholder of an emptied block."""
    found = tensors.get(name)
    if found is not None and found.shape == empty.shape:
        return found
    device = next(iter(tensors.values())).device
    owner, _, attribute = name.rpartition(".")
    if attribute == "head_index":
        return torch.tensor(copy.get_submodule(owner).head_slots, device=device)
    if empty.numel() and not fresh:
        raise OperationError(f"{name} has no values of the shape {tuple(empty.shape)}. Nothing was changed.")
    made = empty.new_empty(empty.shape, device=device)
    is_parameter = attribute in copy.get_submodule(owner)._parameters
    return shard_like(made, tensors) if is_parameter else made


def copy_sharded(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a sharded model, cut in the same way, as ``deepcopy`` does of a whole one."""
    copy = meta_copy(model)
    shard_copy(copy, model, {name: tensor.clone() for name, tensor in tensors_of(model).items()})
    return copy


@torch.no_grad()
def gather_model(model: PreTrainedModel) -> PreTrainedModel | None:
    """Return a sharded model as a whole one on the CPU of rank 0, and None in the other processes.

    Called by all processes; a process other than rank 0 holds one whole parameter at a time.
    """
    is_first = torch.distributed.get_rank() == 0
    state: dict[str, Tensor] = {}
    for name, tensor in tensors_of(model).items():
        gathered = whole(tensor).cpu()
        if is_first:
            state[name] = gathered
    if not is_first:
        return None
    copy = meta_copy(model)
    _put(copy, state)
    return copy


def has_room_for(model: PreTrainedModel) -> bool:
    """Return whether rank 0 and its GPU have room for whole copies of a sharded model; the same in all processes."""
    answer = [False]
    if torch.distributed.get_rank() == 0:
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        answer = [_COPIES * size <= min(_free_bytes(), _free_bytes_of(model.device))]
    torch.distributed.broadcast_object_list(answer)
    return answer[0]


def _free_bytes() -> float:
    """Return the bytes of memory that can be allocated; infinity where the system does not say."""
    limits = [float("inf")]
    with suppress(OSError):
        lines = _MEMORY.read_text(encoding="ascii").splitlines()
        limits += [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    with suppress(OSError, ValueError):
        # This is the limit of a container or a job.
        limit, used = ((_GROUP / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current"))
        limits.append(float(int(limit) - int(used)))
    return min(limits)


def _free_bytes_of(device: torch.device) -> float:
    """Return the bytes that can be allocated on an accelerator; infinity for the CPU, which is counted already."""
    if device.type == "cpu":
        return float("inf")
    module = torch.get_device_module(device)
    # What torch keeps for later counts as used.
    module.empty_cache()
    return float(module.mem_get_info(device)[0])


@torch.no_grad()
def initialize_missing(model: PreTrainedModel, names: Iterable[str], *, random_state: Tensor) -> None:
    """Initialize the named parameters of a sharded model, such as those of a task head, as one process would, in place.

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
