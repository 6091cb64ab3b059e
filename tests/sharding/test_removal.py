"""Heads and neurons removed from shards: the same weights as from a whole model, or nothing is changed."""

from typing import Any

import pytest
import torch
import torch.distributed

import gating
from gating.errors import InputError, OperationError
from gating.proof.prove import ExpectedOutputs
from gating.sharding import finalize_sharded, is_sharded, shard_model
from tests.sharding.models import build, choose, gate, remove_both, state_of
from tests.support.in_ranks import run_in_ranks

pytestmark = pytest.mark.processes

# Grouped queries with padding, biases, tied and untied embeddings, Conv1D, position biases, scalars, experts, a module
# that serves all layers, latent attention, a state, images and sounds.
IN_CI = [
    "bert",
    "llama",
    "qwen2",
    "gpt2",
    "t5",
    "clip",
    "mixtral",
    "albert",
    "deepseek_v2",
    "qwen3_next",
    "whisper",
    "dinov3",
]


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("units", [["heads"], ["heads", "neurons"]], ids=str)
def test_removal_from_shards_equals_that_from_a_whole_model(units, num_ranks):
    families = [family for family in IN_CI if family != "qwen3_next" or units == ["heads"]]
    for found in run_in_ranks(remove_both, families, units, num_ranks=num_ranks):
        assert found == {family: [[], True] for family in families}


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["wav2vec2", "swin", "falcon-new", "umt5", "bart", "gemma3", "modernbert", "deberta-v2"]
)
def test_removal_from_shards_of_other_families(family):
    assert run_in_ranks(remove_both, [family], ["heads"])[0] == {family: [[], True]}


# Without biases, with biases, and in two lists; a first layer stays for the biases.
@pytest.mark.parametrize(("emptied", "families"), [(0, ["llama"]), (1, ["llama", "gpt2", "whisper"])])
def test_layers_without_units_leave_a_sharded_model_as_a_whole_one(emptied, families):
    for found in run_in_ranks(remove_both, families, ["heads", "neurons"], emptied):
        assert found == {family: [[], True] for family in families}


def refuse(what: str) -> list[Any]:
    """Try what cannot be done with a sharded model; return the message, and whether the model is as before."""
    model = shard_model(build("llama"))
    before = state_of(model)
    if what == "prune":
        action = lambda: gating.prune_heads(model, {0: [0]})  # noqa: E731
    else:
        gates = gate(model, ["heads"])
        kept = choose(gates)
        if what == "drifted":
            gates.log_alpha.data += 0.5 * torch.distributed.get_rank()
        if what == "proof":
            ExpectedOutputs.difference = lambda *_: 1.0  # type: ignore[method-assign]
        finalize = gating.finalize if what == "whole" else finalize_sharded
        action = lambda: finalize(model, gates, kept=kept if what != "nothing" else kept & False)  # noqa: E731
    try:
        action()
    except (InputError, OperationError) as error:
        is_same = all(torch.equal(tensor, before[name]) for name, tensor in state_of(model).items() if name in before)
        has_gates = what == "prune" or (gating.find_attention_blocks(model) and model.head_gates is gates)
        return [str(error), is_same and bool(has_gates) and is_sharded(model)]
    return ["no error", False]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("prune", "The model is sharded (FSDPModule): prune the model before fully_shard."),
        ("whole", "call gating.sharding.finalize_sharded(model, gates)"),
        ("drifted", "The value of the gates has drifted apart between the processes, by up to"),
        ("proof", "differs from the model with these heads masked: outputs differ by 1.0e+00"),
        ("nothing", "kept is false for every gate"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_changes(what, message):
    for said, is_intact in run_in_ranks(refuse, what):
        assert message in said
        assert is_intact


def test_a_whole_model_is_refused():
    model = build("bert")
    gates = gate(model, ["heads"])
    with pytest.raises(InputError, match=r"gating\.finalize"):
        finalize_sharded(model, gates)


def find_in_tensor_parallel() -> str:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    model = build("llama")
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    linear = model.model.layers[0].self_attn.q_proj
    linear.weight = torch.nn.Parameter(distribute_tensor(linear.weight.detach(), mesh, [Shard(0)]))
    try:
        gating.inject_gates(model)
    except InputError as error:
        return str(error)
    return "no error"


def test_tensor_parallelism_is_refused():
    assert (
        "layers.0.self_attn.q_proj.weight is distributed by tensor parallelism"
        in run_in_ranks(find_in_tensor_parallel)[0]
    )
