"""Bad budgets, patterns and masks of heads."""

import math
from typing import Any

import torch
from hypothesis import strategies as st

import gating
from tests.support.bad_input.cases import (
    NASTY_NUMBERS,
)
from tests.support.family_models import FAMILIES

# Budgets.

BUDGET = st.sampled_from(
    [*NASTY_NUMBERS, None, None, 4, 4, 8, True, "4", {"encoder": 3}, {"cross": 1}, {"encoder": 0.5}, {}]
)


def try_budget(case: dict[str, Any]) -> None:
    objective = gating.ExactBudget(**case)
    gates = gating.inject_gates(FAMILIES["bert"].build())
    objective.attach(gates)
    objective.update(gates, 1.0)
    kept = objective.kept(gates)
    assert kept is not None
    assert 1 <= int(kept.sum()) <= 12
    per_layer = kept.view(3, 4).sum(1)
    assert int(per_layer.min()) >= case["min_per_layer"]
    if type(case["num_heads"]) is int:
        assert int(kept.sum()) == case["num_heads"]


# Patterns of heads.

HEAD = st.integers(0, 3) | st.integers(0, 3) | st.integers(-1, 5) | st.sampled_from([True, 1.0, "1", None, 10**12])
LAYER = (
    st.integers(0, 2)
    | st.integers(0, 2)
    | st.integers(-1, 3)
    | st.sampled_from(["encoder.layer.0.attention.self", "layers.0.self_attn", "nowhere", None, 1.5])
)


def try_pattern(case: tuple[str, dict[Any, list[Any]]]) -> None:
    family, heads = case
    model = FAMILIES[family].build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    counts = {block.name: block.num_heads for block in gating.find_attention_blocks(model)}
    try:
        report = gating.prune_heads(model, heads)
    except Exception:
        # An error changes nothing.
        assert model.state_dict().keys() == before.keys()
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        raise
    removed = sum(len(set(asked)) for asked in heads.values())
    # A layer may be asked for by its number and by its name.
    assert sum(counts.values()) - removed <= sum(map(len, report.kept_heads.values())) <= sum(counts.values())


# Masks.

MASK = st.sampled_from(
    [
        torch.ones(12, dtype=torch.bool),
        torch.zeros(12, dtype=torch.bool),
        torch.tensor([1, 0] * 6),
        torch.tensor([1.0, 0.0] * 6),
        torch.full((12,), math.nan),
        torch.full((12,), 0.5),
        torch.full((12,), 2),
        torch.ones(11, dtype=torch.bool),
        torch.ones(13, dtype=torch.bool),
        torch.ones(3, 4, dtype=torch.bool),
        torch.ones(0, dtype=torch.bool),
        torch.tensor(True),
        torch.tensor([True, False, False] * 4),
    ]
)


def try_mask(case: tuple[torch.Tensor, Any, int]) -> None:
    kept, num_heads, seed = case
    model = FAMILIES["bert"].build()
    gates = gating.inject_gates(model)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.randn(12, generator=torch.Generator().manual_seed(seed)))
    report = gating.finalize(model, gates, **({"kept": kept} if num_heads == "mask" else {"num_heads": num_heads}))
    left = sum(block.num_heads for block in gating.find_attention_blocks(model))
    assert left == report.num_heads
    if num_heads is not None:  # else the gates have decided
        assert left == (int(kept.sum()) if num_heads == "mask" else num_heads)
