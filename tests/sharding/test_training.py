"""Steps of a sharded model with gates in a loop of one's own: those of one process, if gradients are averaged."""

from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor

import gating
from gating.errors import OperationError
from gating.objectives.rankings import Magnitude
from gating.sharding import average_gradients, clip_gradients, finalize_sharded, shard_model
from gating.sharding.plan import gathered_root, reshard, sharding_of
from gating.structure.edits import whole
from tests.sharding.models import build, gate
from tests.support.in_ranks import run_in_ranks

pytestmark = pytest.mark.processes

NUM_STEPS = 3


def batch_of(rank: int, num_ranks: int) -> dict[str, Tensor]:
    """Return the share of a rank in a batch of 12 texts."""
    ids = torch.randint(3, 99, (12, 8), generator=torch.Generator().manual_seed(5))
    share = ids.chunk(num_ranks)[rank]
    return {"input_ids": share, "labels": share}


def train(family: str, is_sharded: bool, averages: bool = True, norm: float | None = 0.5) -> dict[str, Any]:
    """Return gates, weights and kept heads after some steps, and the ranking by magnitude."""
    rank, num_ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = build(family)
    if is_sharded:
        shard_model(model)
    gates = gate(model, ["heads"])
    model.train()
    # Nothing random: draws differ between processes.
    gates.eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    groups = gating.parameter_groups(model, lr=1e-2, gates=gates, gate_lr=0.5)
    optimizer = torch.optim.AdamW(groups, eps=1e-4, fused=True)
    parameters = [parameter for group in groups for parameter in group["params"]]
    for _ in range(NUM_STEPS):
        loss = model(**batch_of(rank, num_ranks)).loss + 0.1 * gates.prob_open().mean()
        loss.backward()
        if averages and is_sharded:
            average_gradients(parameters)
        if is_sharded:
            clip_gradients(parameters, max_norm=norm, max_value=None if norm else 0.01)
        elif norm:
            torch.nn.utils.clip_grad_norm_(parameters, norm)
        else:
            torch.nn.utils.clip_grad_value_(parameters, 0.01)
        optimizer.step()
        optimizer.zero_grad()
    result: dict[str, Any] = {"scores": Magnitude().scores(gates), "log_alpha": gates.log_alpha.detach()}
    try:
        if is_sharded:
            model, report = finalize_sharded(model, gates, num_heads=6)
        else:
            report = gating.finalize(model, gates, num_heads=6)
    except OperationError as error:
        return {**result, "error": str(error)}
    weights = {name: whole(weight) for name, weight in model.state_dict().items()}
    return {**result, "kept": report.kept_heads, "weights": weights}


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize(("family", "norm"), [("llama", 0.5), ("gpt2", None)])
def test_steps_are_those_of_one_process(family, norm, num_ranks):
    (one,) = run_in_ranks(train, family, False, True, norm, num_ranks=1)
    for found in run_in_ranks(train, family, True, True, norm, num_ranks=num_ranks):
        torch.testing.assert_close(found["log_alpha"], one["log_alpha"], atol=1e-5, rtol=0)
        torch.testing.assert_close(found["scores"], one["scores"], atol=1e-3, rtol=1e-4)
        assert found["kept"] == one["kept"]
        for name, weight in one["weights"].items():
            torch.testing.assert_close(found["weights"][name], weight, atol=1e-4, rtol=0, msg=name)


def test_gates_drift_apart_without_the_average_and_that_is_an_error():
    first, second = run_in_ranks(train, "llama", True, False)
    assert not torch.equal(first["log_alpha"], second["log_alpha"])
    assert "would not keep the same units" in first["error"]
    assert first["error"] == second["error"]


def generate() -> list[Any]:
    """Generate texts of different lengths in the processes, and look at the memory of a model at rest."""
    model = shard_model(build("t5")).eval()
    source = batch_of(torch.distributed.get_rank(), 2)["input_ids"]
    with gathered_root(model):
        written = model.generate(input_ids=source, max_new_tokens=4 + 4 * torch.distributed.get_rank(), do_sample=False)
    reshard(model)
    own = sum(parameter.to_local().numel() for parameter in model.parameters() if hasattr(parameter, "to_local"))
    return [tuple(written.shape), own, sum(parameter.numel() for parameter in model.parameters())]


def test_processes_may_generate_texts_of_different_lengths():
    first, second = run_in_ranks(generate)
    assert first[0][1] < second[0][1]
    assert first[1] + second[1] == first[2]


@pytest.mark.parametrize(
    ("family", "plan"),
    [
        ("bert", {"bert.encoder.layer.*", "bert.embeddings.word_embeddings"}),
        ("gpt2", {"transformer.h.*"}),
        ("llama", {"model.layers.*", "model.embed_tokens", "lm_head"}),
        ("t5", {"encoder.block.*.layer.*", "decoder.block.*.layer.*"}),
    ],
)
def test_layers_are_gathered_for_themselves(family, plan):
    assert set(sharding_of(build(family), 2).fsdp_plan) == plan
