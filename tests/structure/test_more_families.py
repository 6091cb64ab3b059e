"""Families of sound, images, detection and text with layouts of their own: gates, removal, training and folders."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import gating
from gating.discovery.find import search_attention
from gating.proof.outputs import forward_outputs, max_relative_difference
from tests.structure.test_family_folders import auto_class_of, reload_elsewhere
from tests.support.masked_models import make_pattern, prune
from tests.support.single_models import GENERATING, NAMES, build, make_batch

pytestmark = pytest.mark.usefixtures("quiet")

# Relative difference that another order of summation explains.
TOLERANCE = 1e-4


def pattern_of(gates: gating.HeadGates, seed: int) -> Tensor:
    """Return a random pattern with an emptied block; blocks that need a head keep one."""
    pattern = make_pattern(gates, seed)
    for block, values in zip(gates.blocks(), pattern.split(gates.block_sizes), strict=True):
        if block.spec.returns == "unknown" and not values.any():
            values[0] = 1.0
    return pattern


def generate(model: PreTrainedModel, batch: dict[str, Tensor]) -> list[list[int]]:
    inputs = {name: value for name, value in batch.items() if not name.startswith("decoder_")}
    tokens: list[list[int]] = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False).tolist()
    return tokens


@pytest.mark.parametrize("name", NAMES)
def test_all_attention_has_gates_that_change_nothing_while_open(name: str) -> None:
    model = build(name)
    batch = make_batch(name, model)
    expected = forward_outputs(model, batch)
    blocks, ungated = search_attention(model)
    assert blocks
    assert not ungated
    reached: set[str] = set()
    handles = [block.hook_features(lambda _, name=block.name: reached.add(name)) for block in blocks]
    forward_outputs(model, batch)
    for handle in handles:
        handle.remove()
    assert reached == {block.name for block in blocks}
    gates = gating.inject_gates(model)
    with gates.fixed_at(torch.ones(sum(gates.block_sizes))):
        assert max_relative_difference(expected, forward_outputs(model, batch)) <= 1e-5


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_a_removal_equals_masking(name: str, seed: int) -> None:
    model = build(name)
    batch = make_batch(name, model)
    dense = forward_outputs(model, batch)
    gates = gating.inject_gates(model)
    pattern = pattern_of(gates, seed)
    generates = name in GENERATING
    with gates.fixed_at(pattern):
        masked = forward_outputs(model, batch)
        tokens = generate(model, batch) if generates else None
    assert max_relative_difference(dense, masked) > 1e-4
    prune(model, gates, pattern)
    assert max_relative_difference(masked, forward_outputs(model, batch)) <= TOLERANCE
    if generates:
        assert generate(model, batch) == tokens


@pytest.mark.parametrize("name", NAMES)
def test_training_reaches_every_gate(name: str) -> None:
    model = build(name)
    batch = make_batch(name, model)
    gates = gating.inject_gates(model)
    optimizer = torch.optim.SGD(gates.parameters(), lr=0.1)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        assert gates.log_alpha.grad is not None
        assert gates.log_alpha.grad.isfinite().all()
        optimizer.step()
    # Without samples, of which some close or open a head wholly.
    model.eval()
    with torch.no_grad():
        gates.log_alpha.zero_()
    optimizer.zero_grad()
    loss_of(model, batch).backward()
    assert (gates.log_alpha.grad != 0).all()


def loss_of(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    outputs = [value for value in model(**batch).values() if isinstance(value, Tensor) and value.requires_grad]
    return sum((value.masked_fill(value.isinf(), 0.0).pow(2).mean() for value in outputs), torch.zeros(()))


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Finalize a model of each family with gates that are partly open, and load its folder in a fresh process."""
    cwd = tmp_path_factory.mktemp("elsewhere")
    folders = []
    for name in NAMES:
        model = build(name)
        batch = make_batch(name, model)
        gates = gating.inject_gates(model)
        is_open = pattern_of(gates, 0) > 0
        with torch.no_grad():
            noise = torch.randn(is_open.shape, generator=torch.Generator().manual_seed(0))
            gates.log_alpha.copy_(torch.where(is_open, noise, -9.0))
        masked = forward_outputs(model, batch)
        gating.finalize(model, gates, probe=batch)
        assert max_relative_difference(masked, forward_outputs(model, batch)) <= TOLERANCE, name
        gating.save_compact(model, cwd / name, probe=batch)
        torch.manual_seed(0)
        with torch.no_grad():
            outputs = model.eval()(**batch)
        tensors = {key: value for key, value in outputs.items() if isinstance(value, Tensor)}
        expected = {key: value for key, value in tensors.items() if value.isfinite().all()}
        torch.save({"probe": batch, "expected": expected}, cwd / name / "check.pt")
        folders.append((name, auto_class_of(model)))
    return reload_elsewhere(folders, cwd)


@pytest.mark.parametrize("name", NAMES)
def test_reloads_in_a_fresh_process(name: str, reloaded: dict[str, Any], tmp_path: Path) -> None:
    assert reloaded[name] <= 1e-5, reloaded[name]
