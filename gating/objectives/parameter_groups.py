"""Parameter groups of an optimizer: weights with and without decay, gates, and multipliers."""

from typing import Any

from torch import nn
from transformers.trainer_pt_utils import get_parameter_names

from gating.gates import HeadGates
from gating.objectives.base import Objective
from gating.units import UNITS

# Parameters that transformers' Trainer trains without weight decay.
_WITHOUT_DECAY = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    gates: HeadGates | None = None,
    objective: Objective | None = None,
    gate_lr: float | None = None,
    multiplier_lr: float = 0.1,
) -> list[dict[str, Any]]:
    """Return the parameter groups of a model with gates, for any optimizer of ``torch.optim``.

    Each group has a ``name``: ``weights``, ``weights_without_decay`` (biases and norms, as in transformers' Trainer),
    ``gates``, and ``multipliers``, which ascend. Learning rate schedules are for the weights; gates and multipliers
    keep theirs.

    Args:
        model: The model; only parameters that require gradients are trained.
        lr: Learning rate of the weights.
        weight_decay: Weight decay of the weights; gates and multipliers have none.
        gates: The model's gates.
        objective: The objective, whose multipliers, if any, are trained.
        gate_lr: Learning rate of the gates; by default 0.1 on heads alone, 0.2 with gates on neurons. It is about a
            thousand times that of the weights, or no gate would close in a run.
        multiplier_lr: Learning rate of the multipliers.

    Example:
        >>> from gating import inject_gates
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=4, intermediate_size=8)
        >>> model = BertModel(config)
        >>> groups = parameter_groups(model, lr=1e-4, weight_decay=0.01, gates=inject_gates(model))
        >>> [(group["name"], group["lr"], group["weight_decay"]) for group in groups]
        [('weights', 0.0001, 0.01), ('weights_without_decay', 0.0001, 0.0), ('gates', 0.1, 0.0)]
    """
    gate_ids = set() if gates is None else {id(parameter) for parameter in gates.parameters()}
    with_decay = set(get_parameter_names(model, [nn.LayerNorm], list(_WITHOUT_DECAY)))
    weights: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in gate_ids:
            weights[name in with_decay].append(parameter)
    groups: list[dict[str, Any]] = [
        {"name": "weights", "params": weights[True], "lr": lr, "weight_decay": weight_decay},
        {"name": "weights_without_decay", "params": weights[False], "lr": lr, "weight_decay": 0.0},
    ]
    groups = [part for group in groups for part in _by_kind(group)]
    if gates is not None:
        groups += gate_groups(gates, objective, gate_lr=gate_lr, multiplier_lr=multiplier_lr)
    return [group for group in groups if group["params"]]


def _by_kind(group: dict[str, Any]) -> list[dict[str, Any]]:
    """Split a group where some parameters are cut over several processes (FSDP2): optimizers take no mixture."""
    shards = [parameter for parameter in group["params"] if hasattr(parameter, "full_tensor")]
    others = [parameter for parameter in group["params"] if not hasattr(parameter, "full_tensor")]
    if not (shards and others):
        return [group]
    return [{**group, "params": shards}, {**group, "name": f"{group['name']}_whole", "params": others}]


def gate_groups(
    gates: HeadGates, objective: Objective | None, *, gate_lr: float | None = None, multiplier_lr: float = 0.1
) -> list[dict[str, Any]]:
    """Return the groups of :func:`parameter_groups` for gates and multipliers alone, to add to an optimizer's own."""
    groups: list[dict[str, Any]] = [
        {
            "name": "gates",
            "params": list(gates.parameters()),
            "lr": max(UNITS[unit].gate_lr for unit in gates.units) if gate_lr is None else gate_lr,
            "weight_decay": 0.0,
        },
        {
            "name": "multipliers",
            "params": [] if objective is None else list(objective.parameters()),
            "lr": multiplier_lr,
            "weight_decay": 0.0,
            "maximize": True,
        },
    ]
    return [group for group in groups if group["params"]]
