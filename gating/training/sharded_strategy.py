"""Lightning's strategy for sharded models (FSDP2), with checkpoints that are whole or not there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, Shard
from typing_extensions import override

from gating.training.shards import NUM_PROCESSES, check_num_processes, load_shards, read_metadata, save_shards

__all__ = ["ShardedStrategy"]

_STEPPED = "parameters_with_state"
# Name of the callback's state in checkpoints, and prefix of the names of its weights in the Lightning module.
_BEST, _MODEL = "BestWeights", "model."


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for models that are cut over all processes, which have been started already.

    A checkpoint is a folder of :func:`~gating.training.shards.save_shards`. Buffers, which can differ between processes
    as the statistics of a ranking do, are saved by each.
    """

    def __init__(self, num_processes: int) -> None:
        """Args: ``num_processes`` is the world size; by default Lightning would cut nothing."""
        super().__init__(data_parallel_size=num_processes, tensor_parallel_size=1)

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the state of the Lightning module, with the shards of this process."""
        assert self.model is not None
        return get_model_state_dict(self.model)

    @override
    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the state of an optimizer by the names of its parameters, with the shards of this process."""
        assert self.model is not None
        return get_optimizer_state_dict(self.model, _unwrapped(optimizer))

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Save a checkpoint; called by all processes."""
        optimizers = _numbered(checkpoint.pop("optimizer_states", []))
        state = {
            "model": self._stacked(checkpoint.pop("state_dict")),
            "optimizers": optimizers,
            "best": self._stacked(_take_best(checkpoint), prefix=_MODEL),
        }
        # Parameters without a gradient so far have no state.
        stepped = {number: sorted(optimizer["state"]) for number, optimizer in optimizers.items()}
        metadata = {**checkpoint, NUM_PROCESSES: self.world_size, _STEPPED: stepped}
        save_shards(Path(self.broadcast(str(filepath))), state, metadata)

    @override
    def load_checkpoint(self, checkpoint_path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        """Load weights and optimizers, and return the rest.

        Raises:
            InputError: The checkpoint is of another number of processes.
        """
        assert self.model is not None
        path = Path(self.broadcast(str(checkpoint_path)))
        checkpoint = read_metadata(path)
        check_num_processes(checkpoint, path)
        weights = self._stacked(get_model_state_dict(self.model))
        optimizers = [_unwrapped(optimizer) for optimizer in self.optimizers]
        states = _numbered([get_optimizer_state_dict(self.model, optimizer) for optimizer in optimizers])
        wanted = _weights_of_best(checkpoint)
        # Buffers that no state dict has are among them.
        present = self._stacked(
            {name: parameter.detach() for name, parameter in self.model.named_parameters(remove_duplicate=False)}
            | dict(self.model.named_buffers())
        )
        best = {name: torch.empty_like(present[f"{_MODEL}{name}"]) for name in wanted}
        saved = {
            number: {**state, "state": {name: state["state"][name] for name in checkpoint[_STEPPED][number]}}
            for number, state in states.items()
        }
        load_shards(path, {"model": weights, "optimizers": saved, "best": best})
        self.model.load_state_dict(self._own_parts(weights))
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        for optimizer, number in zip(optimizers, states, strict=True):
            set_optimizer_state_dict(self.model, optimizer, states[number])
            for name in states[number]["state"].keys() - saved[number]["state"].keys():
                optimizer.state.pop(parameters[name], None)
        wanted.update({name: tensor.cpu() for name, tensor in self._own_parts(best, prefix=_MODEL).items()})
        return checkpoint

    def _stacked(self, state: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
        """Return a state in which each buffer has a part of each process, along a new first dimension."""
        mesh = self.device_mesh["data_parallel"]
        return {
            name: DTensor.from_local(value.unsqueeze(0), mesh, [Shard(0)]) if self._differs(name, prefix) else value
            for name, value in state.items()
        }

    def _own_parts(self, state: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
        """Return a state of :meth:`_stacked` with the buffers of this process."""
        return {
            name: value.to_local().squeeze(0) if self._differs(name, prefix) else value for name, value in state.items()
        }

    def _differs(self, name: str, prefix: str) -> bool:
        """Return whether the name in a state is that of a buffer, which can differ between processes."""
        assert self.model is not None
        owner, _, attribute = f"{prefix}{name}".rpartition(".")
        return attribute in self.model.get_submodule(owner)._buffers


def _unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    unwrapped: torch.optim.Optimizer = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
    return unwrapped


def _numbered(states: list[dict[str, Any]]) -> dict[str, Any]:
    return {str(number): state for number, state in enumerate(states)}


def _take_best(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the best weights so far, and leave their names in the checkpoint."""
    states = checkpoint.get("callbacks", {})
    if _BEST not in states:
        return {}
    weights: dict[str, Any] = states[_BEST]["weights"]
    checkpoint["callbacks"] = {**states, _BEST: {**states[_BEST], "weights": dict.fromkeys(weights)}}
    return weights


def _weights_of_best(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    weights: dict[str, Any] = checkpoint.get("callbacks", {}).get(_BEST, {}).get("weights", {})
    return weights
