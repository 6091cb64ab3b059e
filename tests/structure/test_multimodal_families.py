"""Models of several modalities: gates and removal in all of their towers, by the registry alone."""

import warnings
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

import gating
from gating.discovery.find import search_blocks
from gating.errors import RemedyWarning
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from tests.support.fresh_process import auto_class_of, difference_elsewhere, save_for_elsewhere
from tests.support.masked_models import units_masked
from tests.support.multimodal_models import MODELS, NAMES, build
from tests.support.tiers import tiered

pytestmark = pytest.mark.usefixtures("quiet")

TOLERANCE = 1e-5
# Attention without gates, by the class and a part of the reason.
UNGATED = {
    "kosmos_2": {"KosmosTextAttention": "inner_attn_ln normalizes across all heads"},
    "chameleon": {"ChameleonVQVAEEncoderAttnBlock": "not registered"},
    "groupvit": {"GroupViTAssignAttention": "not registered"},
}


@pytest.mark.parametrize("name", tiered(NAMES))
def test_all_towers_go_from_gates_to_a_folder_that_loads_elsewhere(name: str, tmp_path: Path) -> None:
    """One model: all attention gated, open gates, two steps, partly open gates, removal, the folder."""
    model = build(name)
    probe, (blocks, ungated) = make_probe(model), search_blocks(model, "heads")
    expected = UNGATED.get(name, {})
    reasons = {one.class_name: one.reason for one in ungated}
    assert reasons.keys() == expected.keys()
    assert all(reason in reasons[class_name] for class_name, reason in expected.items())
    original = forward_outputs(model, probe)
    assert blocks_in_use(model, probe) == {block.name for block in blocks}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RemedyWarning)
        gates = gating.inject_gates(model)
    values = torch.ones(gates.log_alpha.shape, requires_grad=True)
    with gates.fixed_at(values):
        assert max_relative_difference(original, forward_outputs(model, probe)) <= 1e-6
        loss_of(model, probe).backward()
    assert (values.grad.isfinite() & (values.grad != 0)).all()
    train(model, probe)
    pattern = uneven_pattern(gates)
    with torch.no_grad():
        noise = torch.randn(pattern.shape, generator=torch.Generator().manual_seed(1))
        gates.log_alpha.copy_(torch.where(pattern > 0, noise, -9.0))
    masked = forward_outputs(model, probe)
    gating.finalize(model, gates, probe=probe)
    assert max_relative_difference(masked, forward_outputs(model, probe)) <= TOLERANCE
    compact = search_blocks(model, "heads")[0]
    # A block without heads in each tower.
    assert {block.tower for block in compact if not block.num_heads} == {block.tower for block in compact}
    save_for_elsewhere(model, tmp_path / "compact", probe)
    # ViLT puts patches in a random order, so that sums differ in theirs.
    assert difference_elsewhere(tmp_path / "compact", auto_class_of(model)) <= (1e-5 if name == "vilt" else 1e-6)


def blocks_in_use(model: PreTrainedModel, probe: dict[str, Tensor]) -> set[str]:
    names: set[str] = set()
    blocks = search_blocks(model, "heads")[0]
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


# Layers that lend keys and values, cached keys of images, and a replaced forward with two caches.
@pytest.mark.families
@pytest.mark.parametrize("name", ["gemma3n", "gemma4", "mllama", "trocr"])
@pytest.mark.parametrize("kept", [(), (1,), (0, 4)], ids=str)
def test_generates_the_same(name: str, kept: tuple[int, ...]) -> None:
    model = build(name)
    probe = make_probe(model)
    blocks = search_blocks(model, "heads")[0]
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
    blocks, ungated = search_blocks(getattr(transformers, name)._from_config(config), "heads")
    assert {block.tower for block in blocks} == {"language"}
    (refused,) = ungated
    assert "q_norm normalizes across all heads" in refused.reason
