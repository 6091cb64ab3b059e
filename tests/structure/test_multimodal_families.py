"""Models of several modalities: gates and removal in all of their towers, by the registry alone."""

import warnings
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

import gating
from gating.discovery.find import search_attention
from gating.errors import RemedyWarning
from gating.proof.masked import units_masked
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from tests.structure.test_family_folders import auto_class_of
from tests.support.fresh_process import answers_of_fresh_process, outputs_of
from tests.support.multimodal_models import MODELS, NAMES, build

pytestmark = pytest.mark.usefixtures("quiet")

TOLERANCE = 1e-5
# Attention without gates, by the class and a part of the reason.
UNGATED = {
    "kosmos_2": {"KosmosTextAttention": "inner_attn_ln normalizes across all heads"},
    "chameleon": {"ChameleonVQVAEEncoderAttnBlock": "a single head"},
    "groupvit": {"GroupViTAssignAttention": "a single head"},
}


@dataclass
class Case:
    """A model whose gates were trained for two steps and then removed with the closed heads.

    Attributes:
        model: The compact model.
        probe: Its batch.
        ungated: Reasons for which attention has no gates, by class.
        unreached: Blocks that the batch does not reach.
        open_difference: Difference of the outputs with all gates open from those of the original.
        gradient: Gradient of the outputs with respect to the values of all gates.
        emptied: Number of blocks without heads of each tower.
        masked: Outputs with the closed heads masked.
    """

    model: PreTrainedModel
    probe: dict[str, Tensor]
    ungated: dict[str, str]
    unreached: list[str]
    open_difference: float
    gradient: Tensor
    emptied: Counter[str]
    masked: list[Tensor]


@lru_cache
def case(name: str) -> Case:
    model = build(name)
    probe, (blocks, ungated) = make_probe(model), search_attention(model)
    original = forward_outputs(model, probe)
    reached = blocks_in_use(model, probe)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RemedyWarning)
        gates = gating.inject_gates(model)
    values = torch.ones(gates.log_alpha.shape, requires_grad=True)
    with gates.fixed_at(values):
        open_difference = max_relative_difference(original, forward_outputs(model, probe))
        loss_of(model, probe).backward()
    train(model, probe)
    pattern = uneven_pattern(gates)
    with torch.no_grad():
        noise = torch.randn(pattern.shape, generator=torch.Generator().manual_seed(1))
        gates.log_alpha.copy_(torch.where(pattern > 0, noise, -9.0))
    masked = forward_outputs(model, probe)
    gating.finalize(model, gates, probe=probe)
    return Case(
        model,
        probe,
        {one.class_name: one.reason for one in ungated},
        [block.name for block in blocks if block.name not in reached],
        open_difference,
        values.grad,
        Counter(block.tower for block in search_attention(model)[0] if not block.num_heads),
        masked,
    )


def blocks_in_use(model: PreTrainedModel, probe: dict[str, Tensor]) -> set[str]:
    names: set[str] = set()
    blocks = search_attention(model)[0]
    handles = [block.hook_features(lambda _, name=block.name: names.add(name)) for block in blocks]
    forward_outputs(model, probe)
    for handle in handles:
        handle.remove()
    return names


def loss_of(model: PreTrainedModel, probe: dict[str, Tensor]) -> Tensor:
    """Return a loss of all outputs: weighted, because norms make the plain sum of some constant."""
    generator = torch.Generator().manual_seed(0)
    outputs = forward_outputs(model, probe, with_gradients=True)
    return sum(
        (one.float() * torch.randn(one.shape, generator=generator)).sum() for one in outputs if one.requires_grad
    )


def train(model: PreTrainedModel, probe: dict[str, Tensor]) -> None:
    """Take two steps with sampled gates."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for step in range(2):
        torch.manual_seed(step)
        outputs = [value for value in model(**probe).values() if isinstance(value, Tensor) and value.requires_grad]
        optimizer.zero_grad()
        sum(value.float().pow(2).mean() for value in outputs).backward()
        optimizer.step()
    model.eval()


def uneven_pattern(gates: gating.HeadGates) -> Tensor:
    """Return a zero or one for every gate: at random, but the first block of each tower is empty."""
    pattern = (torch.rand(sum(gates.block_sizes), generator=torch.Generator().manual_seed(0)) < 0.5).float()
    towers = set()
    for block, values in zip(gates.blocks(), pattern.split(gates.block_sizes), strict=True):
        if block.tower not in towers:
            values.zero_()
        towers.add(block.tower)
    return pattern


@pytest.mark.parametrize("name", NAMES)
def test_all_towers_have_gates_that_learn(name: str) -> None:
    found = case(name)
    expected = UNGATED.get(name, {})
    assert found.ungated.keys() == expected.keys()
    assert all(reason in found.ungated[class_name] for class_name, reason in expected.items())
    assert found.unreached == []
    assert found.open_difference <= 1e-6
    assert (found.gradient.isfinite() & (found.gradient != 0)).all()


@pytest.mark.parametrize("name", NAMES)
def test_compact_equals_masked(name: str) -> None:
    found = case(name)
    assert max_relative_difference(found.masked, forward_outputs(found.model, found.probe)) <= TOLERANCE
    assert set(found.emptied) == {block.tower for block in search_attention(found.model)[0]}


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder, jobs = tmp_path_factory.mktemp("folders"), {}
    for name in NAMES:
        found = case(name)
        gating.save_compact(found.model, folder / name)
        jobs[name] = {"folder": str(folder / name), "auto_class": auto_class_of(found.model), "batch": found.probe}
    return answers_of_fresh_process(jobs, with_package=False)


@pytest.mark.parametrize("name", NAMES)
def test_reloads_in_a_fresh_process(name: str, reloaded: dict[str, Any]) -> None:
    found = case(name)
    with torch.no_grad():
        expected = found.model(**found.probe)[0]
    # ViLT puts patches in a random order, so that sums differ in theirs.
    torch.testing.assert_close(outputs_of(reloaded[name])[0], expected, rtol=0, atol=1e-5 if name == "vilt" else 1e-6)


# Layers that lend keys and values, cached keys of images, and a replaced forward with two caches.
@pytest.mark.parametrize("name", ["gemma3n", "gemma4", "mllama", "trocr"])
@pytest.mark.parametrize("kept", [(), (1,), (0, 4)], ids=str)
def test_generates_the_same(name: str, kept: tuple[int, ...]) -> None:
    model = build(name)
    probe = make_probe(model)
    blocks = search_attention(model)[0]
    with units_masked(blocks, {block.name: kept for block in blocks}):
        masked = generate(model, probe)
    gating.prune_heads(model, {block.name: set(block.head_ids) - set(kept) for block in blocks})
    assert generate(model, probe) == masked
    fresh = type(model)(model.config)
    fresh.load_state_dict(model.state_dict())
    assert generate(fresh.eval(), probe) == masked


def generate(model: PreTrainedModel, probe: dict[str, Tensor]) -> list[list[int]]:
    inputs = {name: value for name, value in probe.items() if not name.startswith("decoder_")}
    return model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False).tolist()


def test_norms_across_heads_refuse_one_tower_only() -> None:
    name, config, arguments = MODELS["internvl"]
    vision = {**arguments["vision_config"], "use_qk_norm": True}
    config = getattr(transformers, config)(**{**arguments, "vision_config": vision})
    blocks, ungated = search_attention(getattr(transformers, name)._from_config(config))
    assert {block.tower for block in blocks} == {"language"}
    (refused,) = ungated
    assert "q_norm normalizes across all heads" in refused.reason
