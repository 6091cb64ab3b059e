"""Lightning's strategy for sharded models (FSDP2), and their checkpoints: folders with a file of each process.

A run resumes with as many processes as before, so each saves and loads its own shards; nothing is gathered.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from typing_extensions import override

from gating.distributed.collectives import gather_objects
from gating.errors import InputError
from gating.storage.atomic import replacing_file
from gating.structure.edits import own_part

__all__ = ["ShardedStrategy", "load_own_state", "load_shards", "read_metadata", "save_shards", "write_checkpoint"]

# Written last: a folder without it is not a whole checkpoint.
_METADATA = "meta.pt"
# The name of the sizes of all files there, in bytes.
_SIZES = "sizes"


def save_shards(path: Path, state: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Write a checkpoint of all processes as a folder, in a file system that they share; called by all.

    Args:
        path: Path of the folder, which is replaced.
        state: Nested tables of tensors and plain values, of which each process writes its own.
        metadata: Plain values and tensors of rank 0.

    Raises:
        OSError: A process cannot write, for example on a full disk; earlier checkpoints stay.
    """
    own, is_first = path / f"rank-{torch.distributed.get_rank()}.pt", torch.distributed.get_rank() == 0
    if is_first and path.exists():
        shutil.rmtree(path)
    torch.distributed.barrier()
    write_checkpoint(apply_to_collection(state, DTensor, DTensor.to_local), own)
    sizes = dict(gather_objects((own.name, own.stat().st_size)))
    if is_first:
        write_checkpoint({**metadata, _SIZES: sizes}, path / _METADATA)


def write_checkpoint(values: dict[str, Any], path: Path) -> None:
    """Write tensors and plain values to a file that is whole or not there."""
    with replacing_file(path) as new, new.open("wb") as file:
        torch.save(values, file)


def read_metadata(path: Path) -> dict[str, Any]:
    """Return what rank 0 has saved beside the shards, without running pickled code.

    Raises:
        OSError: The checkpoint is not whole.
    """
    metadata: dict[str, Any] = torch.load(path / _METADATA, map_location="cpu", weights_only=True)
    for name, size in metadata[_SIZES].items():
        if (path / name).stat().st_size != size:
            raise OSError(f"{name} is truncated")
    return metadata


def load_shards(path: Path) -> dict[str, Any]:
    """Return what this process has saved by :func:`save_shards`, on the CPU, without running pickled code.

    Raises:
        InputError: The checkpoint is of another number of processes.
    """
    before, now = len(read_metadata(path)[_SIZES]), torch.distributed.get_world_size()
    if before != now:
        raise InputError(
            f"{path} is of {before} processes, and this run has {now}: batches and shards would be others. Resume with "
            "as many as before (trainer.devices, trainer.num_nodes)."
        )
    file = path / f"rank-{torch.distributed.get_rank()}.pt"
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return state


def load_own_state(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Load the state of a module that this process has saved, in place."""
    present = module.state_dict()
    module.load_state_dict({name: _cut_like(present[name], value) for name, value in state.items()})


def _cut_like(parameter: Any, value: Any) -> Any:
    """Return a value that was saved of a parameter or for it as a shard; numbers of steps and others as they are."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.dim() == 0:
        return value
    value, shape = value.to(own_part(parameter).device), parameter.shape
    mesh, placements, stride = parameter.device_mesh, parameter.placements, parameter.stride()
    return DTensor.from_local(value, mesh, placements, run_check=False, shape=shape, stride=stride)


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for models that are cut over all processes, with checkpoints of :func:`save_shards`.

    The processes have been started already. Buffers, which can differ between processes as the statistics of a ranking
    do, are saved by each.
    """

    def __init__(self, num_processes: int) -> None:
        """Args: ``num_processes`` is the world size; by default Lightning would cut nothing."""
        super().__init__(data_parallel_size=num_processes, tensor_parallel_size=1)

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the state of the Lightning module, with the shards of this process."""
        assert self.model is not None
        return self.model.state_dict()

    @override
    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the state of an optimizer, with the shards of this process."""
        return optimizer.state_dict()

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Save a checkpoint; called by all processes."""
        save_shards(Path(self.broadcast(str(filepath))), checkpoint, {"phase": checkpoint.get("phase")})

    @override
    def load_checkpoint(self, checkpoint_path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        """Load weights and optimizers, and return the rest."""
        assert self.model is not None
        checkpoint = load_shards(Path(self.broadcast(str(checkpoint_path))))
        load_own_state(self.model, checkpoint.pop("state_dict"))
        for optimizer, state in zip(self.optimizers, checkpoint.pop("optimizer_states"), strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for number, values in state["state"].items():
                state["state"][number] = {name: _cut_like(parameters[number], value) for name, value in values.items()}
            optimizer.load_state_dict(state)
        return checkpoint
