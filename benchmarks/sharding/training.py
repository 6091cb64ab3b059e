"""Training state of each process, and time of a training step: sharded (FSDP2), and whole in each process (DDP)."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

import gating
from benchmarks.measuring import interleave
from benchmarks.sharding.memory import local_bytes
from benchmarks.sharding.models import batch_of, gate_parameters, load_sharded, load_whole, weights, whole_bytes
from benchmarks.sharding.processes import device
from gating.sharding import average_gradients, clip_gradients, is_sharded
from gating.training.optimizers import AdamW

_MAX_NORM = 1.0
_MOMENTS = ("exp_avg", "exp_avg_sq")


def count_state(folder: str) -> dict[str, int]:
    """Count the bytes of parameters, gradients and both moments of AdamW after a training step.

    Returns:
        Bytes of this process, bytes of all processes together, and those of the gates, which are whole in each.
    """
    model = load_sharded(folder)
    gates = gating.inject_gates(model.train(), units=["heads", "neurons"])
    optimizer = AdamW().build(model, gates=gates)
    batch = batch_of(model, 1, 16, device(), seed=torch.distributed.get_rank())
    _sharded_step(model, optimizer, batch)
    cut = _state(weights(model), optimizer)
    return {
        "own": local_bytes(cut),
        "all": whole_bytes(cut),
        "gates": local_bytes(_state(gate_parameters(model), optimizer)),
    }


def _state(parameters: Any, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the tensors that training keeps for some parameters, themselves included."""
    found = []
    for parameter in parameters:
        found += [parameter, parameter.grad, *(optimizer.state[parameter][name] for name in _MOMENTS)]
    return found


def time_steps(folder: str, *, batch_size: int, length: int, rounds: int) -> dict[str, list[float]]:
    """Time training steps of a model with gates in turns, sharded and whole; return the seconds of each round."""
    steps = {
        "fsdp": _step_of(load_sharded(folder), batch_size, length),
        "ddp": _step_of(load_whole(folder, device()), batch_size, length),
    }
    # A budget of time would end at other rounds in other processes.
    return interleave(steps, rounds=rounds, warm_up=1, budget_s=math.inf, prepare=torch.distributed.barrier)


def _step_of(model: PreTrainedModel, batch_size: int, length: int) -> Callable[[], None]:
    """Return a training step of a model, which gets gates; a whole one is wrapped in DDP."""
    gates = gating.inject_gates(model.train())
    optimizer = AdamW().build(model, gates=gates)
    batch = batch_of(model, batch_size, length, device(), seed=torch.distributed.get_rank())
    if is_sharded(model):
        return lambda: _sharded_step(model, optimizer, batch)
    wrapped = DistributedDataParallel(model)
    return lambda: _whole_step(wrapped, optimizer, batch)


def _sharded_step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> None:
    optimizer.zero_grad()
    model(**batch).loss.backward()
    average_gradients(model.parameters())
    clip_gradients(model.parameters(), max_norm=_MAX_NORM)
    optimizer.step()


def _whole_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> None:
    optimizer.zero_grad()
    model(**batch).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_NORM)
    optimizer.step()
