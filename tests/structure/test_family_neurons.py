"""Every family without some of its neurons, and some of its heads: the same outputs, tokens and gradients."""

from itertools import product

import pytest

import gating
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from gating.pruning.plan import plan_pruning
from gating.structure.edits import apply_edits, undo_edits
from gating.structure.layers import iter_blocks
from tests.support.family_models import FAMILIES as ALL_FAMILIES
from tests.support.masked_models import (
    TOLERANCE,
    Units,
    check_generation,
    compact,
    group_sizes,
    without_gradient,
)
from tests.support.tiers import tiered
from tests.support.tiny_models import assert_same_state, state_of

# Hybrid models have layers without gates.
pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.filterwarnings("ignore:.*get no gates")]

BOTH = ("heads", "neurons")
FAMILIES = {name: family for name, family in ALL_FAMILIES.items() if family.has_neurons}
GENERATIVE = [name for name, family in FAMILIES.items() if family.generates]
# Every layout of up projections, owners that are the layer itself, shared layers, and towers.
SAMPLE = ["bert", "albert", "gpt2", "llama", "phi3", "modernbert", "t5", "mt5", "bart", "siglip", "swin"]


@pytest.mark.parametrize("name", tiered(FAMILIES, mark="slow"))
def test_compact_equals_masked(name: str) -> None:
    sizes, dense = group_sizes(FAMILIES[name]), FAMILIES[name].build()
    unused = without_gradient(dense, make_probe(dense))
    for units, seed, group_size in (("neurons", 0, sizes[1]), (BOTH, None, sizes[0])):
        model, masked, probe = compact(FAMILIES[name], seed, units=units, group_size=group_size)
        assert max_relative_difference(masked, forward_outputs(model, probe)) <= TOLERANCE
        assert without_gradient(model, probe) <= unused


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("units", ["neurons", BOTH], ids=str)
def test_compact_equals_masked_on_more_patterns(name: str, units: Units) -> None:
    family = FAMILIES[name]
    for case in product((0, 1, 2, 3, 4, None), family.implementations, group_sizes(family)):
        seed, implementation, group_size = case
        model, masked, probe = compact(family, seed, implementation=implementation, units=units, group_size=group_size)
        assert max_relative_difference(masked, forward_outputs(model, probe)) <= TOLERANCE, case


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERATIVE)
@pytest.mark.parametrize("units", ["neurons", BOTH], ids=str)
def test_generates_the_same_on_more_patterns(name: str, units: Units) -> None:
    family = FAMILIES[name]
    for seed, implementation in product((1, 2, 3, None), family.implementations):
        check_generation(family, seed, implementation=implementation, units=units)


@pytest.mark.parametrize("name", tiered(SAMPLE))
def test_a_removal_is_undone_bit_for_bit(name: str) -> None:
    model = FAMILIES[name].build()
    state, text, classes = state_of(model), str(model), [type(module) for module in model.modules()]
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    blocks = list(iter_blocks(model, *BOTH, group_size=7))
    # Emptied, uneven, emptied, uneven, ...
    kept = {block.name: set(block.unit_ids[1::2] if index % 2 else ()) for index, block in enumerate(blocks)}
    done = apply_edits(plan_pruning(model, blocks, kept))
    assert str(model) != text
    undo_edits(done)
    assert_same_state(model, state)
    assert (str(model), [type(module) for module in model.modules()]) == (text, classes)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes


@pytest.mark.parametrize("name", tiered(SAMPLE))
def test_removing_twice_keeps_the_original_numbers(name: str) -> None:
    once, twice = FAMILIES[name].build(), FAMILIES[name].build()
    blocks = gating.find_feed_forward_blocks(once, group_size=7)
    first = {block.name: [0, 2] for block in blocks}
    second = {block.name: [block.num_numbers - 1] for block in blocks[1:]}
    second[blocks[0].name] = list(range(blocks[0].num_numbers))
    report = gating.prune_neurons(
        once, {name: [*groups, *second.get(name, [])] for name, groups in first.items()}, group_size=7
    )
    gating.prune_neurons(twice, first, group_size=7)
    assert gating.prune_neurons(twice, second).kept_neurons == report.kept_neurons
    assert report.kept_neurons[blocks[0].name] == ()
    assert once.config.to_dict()["head_gating"] == twice.config.to_dict()["head_gating"]
    assert_same_state(twice, state_of(once))


def test_a_shared_layer_is_one_block() -> None:
    model = FAMILIES["albert"].build()
    assert len(gating.find_feed_forward_blocks(model)) == 2
    assert model.config.num_hidden_layers == 4


def test_blocks_follow_the_order_of_layers_and_towers() -> None:
    names = [block.name for block in gating.find_feed_forward_blocks(FAMILIES["siglip"].build())]
    assert [name.split(".")[0] for name in names] == ["text_model"] * 2 + ["vision_model"] * 3
    assert names[-1] == "vision_model.head.mlp.fc2"
