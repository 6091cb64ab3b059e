"""Jobs of the tests of sharded models in each process: removals and steps, with and without shards."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import gating
from gating.gates import HeadGates
from gating.sharding import finalize_sharded, shard_model
from gating.structure.edits import whole
from tests.support.family_models import FAMILIES

__all__ = ["build", "choose", "differences", "gate", "remove_both", "state_of"]


def build(family: str) -> PreTrainedModel:
    """Return a tiny random model of a family."""
    torch.manual_seed(0)
    return FAMILIES[family].build().eval()


def gate(model: PreTrainedModel, units: Sequence[str]) -> HeadGates:
    """Put gates with random locations on a model."""
    options: dict[str, Any] = {"units": units, "group_size": 16} if "neurons" in units else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about modules without gates
        gates = gating.inject_gates(model, **options)
    torch.manual_seed(1)
    torch.nn.init.normal_(gates.log_alpha)
    return gates


def choose(gates: HeadGates) -> Tensor:
    """Return a mask that keeps about half of the gates, none of the last block, where a block may lose all."""
    generator = torch.Generator().manual_seed(3)
    kept = torch.rand(len(gates.log_alpha), generator=generator) < 0.6
    blocks = list(kept.split(gates.block_sizes))
    blocks[0][0] = True
    blocks[-1][:] = False
    return torch.cat(blocks)


def choose_without_layer(gates: HeadGates, layer: int) -> Tensor:
    """Return a mask that keeps all gates but those of one layer."""
    blocks = zip(gates.blocks(), gates.block_sizes, strict=True)
    return torch.cat([torch.full((size,), block.layer_idx != layer) for block, size in blocks])


def state_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the whole tensors of a model."""
    return {name: whole(tensor) for name, tensor in model.state_dict().items()}


def differences(one: PreTrainedModel, sharded: PreTrainedModel) -> list[str]:
    """Return the names of the tensors that are not equal to the bit."""
    expected, found = one.state_dict(), state_of(sharded)
    missing = sorted(expected.keys() ^ found.keys())
    return missing or [name for name in expected if not torch.equal(expected[name], found[name])]


def remove_both(families: Sequence[str], units: Sequence[str], emptied: int | None = None) -> dict[str, Any]:
    """Remove the same units from whole and from sharded models of some families; return what differs, by family.

    If a layer is given that is to be ``emptied``, it has to leave the models.
    """
    found = {}
    for family in families:
        one = build(family)
        other = copy.deepcopy(one)
        gates = gate(one, units)
        kept = choose(gates) if emptied is None else choose_without_layer(gates, emptied)
        report = gating.finalize(one, gates, kept=kept)
        assert emptied is None or report.kept_layers
        shard_model(other)
        compact, its_report = finalize_sharded(other, gate(other, units), kept=kept)
        assert not hasattr(other, "head_gates")
        found[family] = [differences(one, compact), its_report == report]
        assert compact.config.head_gating == one.config.head_gating
    return found
