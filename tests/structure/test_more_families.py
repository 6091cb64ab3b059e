"""Families of sound, images, detection and text with layouts of their own: gates, removal, training and folders."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import gating
from gating.discovery.find import search_blocks
from gating.proof.outputs import forward_outputs, max_relative_difference
from tests.support.fresh_process import auto_class_of, difference_elsewhere, save_for_elsewhere
from tests.support.masked_models import make_pattern, prune
from tests.support.single_models import GENERATING, NAMES, build, make_batch
from tests.support.tiers import first_of, tiered

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


@pytest.mark.parametrize("name", first_of(NAMES))
def test_a_family_goes_from_gates_to_a_folder_that_loads_elsewhere(name: str, tmp_path: Path) -> None:
    """One model: all attention gated, open gates, a search of two steps, partly open gates, removal, the folder."""
    model = build(name)
    batch = make_batch(name, model)
    dense = forward_outputs(model, batch)
    assert_all_attention_is_known_and_reached(model, batch)
    gates = gating.inject_gates(model)
    with gates.fixed_at(torch.ones(sum(gates.block_sizes))):
        assert max_relative_difference(dense, forward_outputs(model, batch)) <= 1e-5
    assert_training_reaches_every_gate(model, gates, batch)
    is_open = pattern_of(gates, 0) > 0
    with torch.no_grad():
        noise = torch.randn(is_open.shape, generator=torch.Generator().manual_seed(0))
        gates.log_alpha.copy_(torch.where(is_open, noise, -9.0))
    masked = forward_outputs(model, batch)
    tokens = generate(model, batch) if name in GENERATING else None
    assert max_relative_difference(dense, masked) > 1e-4
    gating.finalize(model, gates, probe=batch)
    assert max_relative_difference(masked, forward_outputs(model, batch)) <= TOLERANCE
    if tokens is not None:
        assert generate(model, batch) == tokens
    save_for_elsewhere(model, tmp_path / "compact", batch, probe=batch)
    assert difference_elsewhere(tmp_path / "compact", auto_class_of(model)) <= 1e-5


def assert_all_attention_is_known_and_reached(model: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    blocks, ungated = search_blocks(model, "heads")
    assert blocks
    assert not ungated
    reached: set[str] = set()
    handles = [block.hook_features(lambda _, name=block.name: reached.add(name)) for block in blocks]
    forward_outputs(model, batch)
    for handle in handles:
        handle.remove()
    assert reached == {block.name for block in blocks}


def assert_training_reaches_every_gate(
    model: PreTrainedModel, gates: gating.HeadGates, batch: dict[str, Tensor]
) -> None:
    # Without a seed, one model in a hundred would drop all of its layers.
    torch.manual_seed(0)
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


@pytest.mark.parametrize("name", tiered(NAMES))
def test_a_removal_equals_masking(name: str) -> None:
    model = build(name)
    batch = make_batch(name, model)
    gates = gating.inject_gates(model)
    pattern = pattern_of(gates, 1)
    with gates.fixed_at(pattern):
        masked = forward_outputs(model, batch)
        tokens = generate(model, batch) if name in GENERATING else None
    prune(model, gates, pattern)
    assert max_relative_difference(masked, forward_outputs(model, batch)) <= TOLERANCE
    if tokens is not None:
        assert generate(model, batch) == tokens
