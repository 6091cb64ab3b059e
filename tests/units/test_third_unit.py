"""A third unit, whole feed-forward blocks, of which the package knows nothing: gated, searched, counted and removed."""

import copy
import re
from dataclasses import dataclass

import pytest
import torch

import gating
from gating.discovery.ungated import UngatedModules
from gating.errors import RemedyWarning
from gating.gates import create_gates
from gating.objectives import HeadBudget
from gating.objectives.costs import gate_costs
from gating.objectives.gate_metrics import gate_metrics
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from gating.pruning.latency.costs import measure_latency_costs
from gating.pruning.measure import measure_macs
from gating.report.summary import Summary
from gating.structure.blocks import Block
from gating.structure.feed_forward import FeedForwardBlock, iter_feed_forward_blocks
from gating.training.callbacks.progress import describe_open
from gating.units import UNITS, GateSize, Unit, find_blocks
from gating.units.neurons import neuron_norms
from gating.units.unit import Metrics
from tests.support.tiers import first_of
from tests.support.timers import KnownTimes
from tests.support.tiny_models import NUM_LAYERS, batch_for
from tests.support.tiny_run import ROOT

WIDTH = 48
BOTH = ("heads", "blocks")


@dataclass(frozen=True)
class WholeBlock:
    """A feed-forward block with one unit: itself."""

    inner: FeedForwardBlock

    unit = "blocks"
    registered_by = "register_feed_forward_spec"
    kind = "whole"

    def __getattr__(self, name):
        return getattr(object.__getattribute__(self, "inner"), name)

    @property
    def group_size(self):
        return None

    @property
    def unit_ids(self):
        return (0,) if self.inner.num_neurons else ()

    @property
    def slot_ids(self):
        return self.unit_ids

    @property
    def slot_widths(self):
        return (self.inner.num_neurons,) * len(self.unit_ids)

    def plan_removal(self, kept):
        return self.inner.plan_removal(self.inner.group_ids if 0 in kept else ())


class WholeBlocks(Unit):
    name = "blocks"
    singular = full_name = "block"
    label = "whole feed-forward"
    gated = "blocks"
    why_inexact = ("a gate stands for {} blocks", "give a share, ", "keep=0.5.", "objective.keep=0.5.")
    metrics = Metrics("gates/blocks/expected", "gates/blocks/open", "gates/blocks/target", "gates/block_{:02d}/open")

    def blocks(self, model):
        return map(WholeBlock, iter_feed_forward_blocks(model))

    def search(self, model, *, group_size=None, discover=False, probe=None):
        return list(self.blocks(model)), []

    def size(self, block):
        return len(block.unit_ids)

    def size_before(self, block):
        return 1

    def gate_sizes(self, block, *, group_queries=True):
        macs, parameters = block.neuron_size()
        return [GateSize(1, width, width * macs, width * parameters) for width in block.slot_widths]

    def norms(self, block):
        return neuron_norms(block.inner).sum().reshape(1)

    def is_foreign(self, block):
        return False


@pytest.fixture(autouse=True)
def _third_unit(monkeypatch):
    monkeypatch.setitem(UNITS, "blocks", WholeBlocks())


def test_its_gates_multiply_and_count(bert):
    gates = gating.inject_gates(bert, units=BOTH)
    assert gates.units == BOTH
    assert (
        repr(gates) == f"HeadGates(12 heads in 3 attention blocks, {NUM_LAYERS} blocks in 3 whole feed-forward blocks)"
    )
    assert gates.counts["blocks"] == (0,) * 12 + (1,) * NUM_LAYERS
    gates.log_alpha.data[13] = -9.0
    assert (gates.num_open(), gates.count_open("blocks"), gates.total("blocks")) == (12, 2, 3)
    assert "all blocks" in gates.summary()
    assert describe_open(gates) == "12 of 12 heads and 2 of 3 blocks"
    with gates.detached() as model:
        alone = create_gates(model, units="blocks")
    assert describe_open(alone) == "3 of 3 blocks"
    bert.eval()
    seen = []
    down = bert.bert.encoder.layer[1].output.dense
    down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    bert(**batch_for(bert))
    assert not seen[0].any()
    assert measure_macs(bert, gates, find_blocks(bert, units=BOTH), batch_for(bert)).min() > 0


@pytest.mark.parametrize("units", ["blocks", BOTH], ids=str)
def test_it_is_removed_and_proven(bert, units):
    gates = gating.inject_gates(bert, units=units)
    with torch.no_grad():
        gates.log_alpha[-2] = -9.0
        gates.log_alpha[-1] = 0.5
    bert.eval()
    probe = make_probe(bert)
    masked = forward_outputs(bert, probe)
    report = gating.finalize(bert, gates, probe=probe)
    assert (report.before.units["blocks"], report.after.units["blocks"]) == (3, 2)
    assert [len(kept) for kept in report.kept["blocks"].values()] == [1, 0, 1]
    assert (report.num_heads, report.num_neurons) == (12, 2 * WIDTH)
    assert max_relative_difference(masked, forward_outputs(bert, probe)) < 1e-5


OBJECTIVES = {
    "exact": lambda **budget: gating.ExactBudget(**budget),
    "lagrangian": lambda **budget: gating.Lagrangian(**budget),
    "top-k": lambda **budget: gating.TopK(**budget),
    "importance": lambda **budget: gating.IterativePruning(gating.Importance(), **budget),
    "magnitude": lambda **budget: gating.IterativePruning(gating.Magnitude(), **budget),
    "fixed price": lambda **_: gating.FixedPrice(price=1.0),
}


@pytest.mark.filterwarnings("ignore:.*nearly arbitrary")
@pytest.mark.parametrize("units", ["blocks", BOTH], ids=str)
@pytest.mark.parametrize("name", first_of(OBJECTIVES, every=6))
def test_every_objective_searches_it(bert, name, units):
    gates = gating.inject_gates(bert, units=units)
    objective = OBJECTIVES[name](keep=0.67)
    objective.attach(gates)
    optimizer = torch.optim.Adam(gating.parameter_groups(bert, lr=1e-4, gates=gates, objective=objective))
    for step in range(6):
        objective.update(gates, step / 5)
        loss = bert(**batch_for(bert)).logits.square().mean() + objective.penalty(gates)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    metrics = gate_metrics(gates, objective)
    assert metrics["gates/blocks/open"] <= 3
    assert {f"gates/block_{index:02d}/open" for index in range(3)} <= set(metrics)
    if name == "fixed price":
        return
    kept = objective.kept(gates)
    if units == "blocks":
        assert kept.sum() == 2
    else:
        costs = torch.tensor(gate_costs(gates, "macs").of_gate)
        assert 0.5 < float(costs[kept].sum() / costs.sum()) <= 0.67
        assert {"gates/cost/heads", "gates/cost/blocks"} <= set(metrics)
    report = gating.finalize(bert, gates, objective)
    assert report.after.units["blocks"] == int(kept[-3:].sum())


def test_modules_without_its_gates_have_a_sentence(bert, monkeypatch):
    ungated = UngatedModules("Odd", ("encoder.odd", "encoder.even"), "it is odd", "blocks", "whole feed-forward")
    monkeypatch.setattr(WholeBlocks, "search", lambda unit, model, **_: (list(unit.blocks(model)), [ungated]))
    sentence = "2 whole feed-forward modules of .* get no gates, so they keep all blocks: encoder.odd and 1 more"
    with pytest.warns(RemedyWarning, match=sentence):
        gating.inject_gates(bert, units=BOTH)


def test_a_share_takes_the_place_of_every_number(bert):
    @dataclass(frozen=True)
    class OwnBudget(HeadBudget):
        num_blocks: int | None = None

    budget = OwnBudget(num_heads=3, num_neurons=64, num_blocks=2, min_per_layer=1)
    assert budget.numbers == {"heads": 3, "neurons": 64, "blocks": 2}
    moved = budget.with_keep(0.5, create_gates(bert))
    assert (moved.numbers, moved.keep, moved.min_per_layer) == ({}, 0.5, 1)


def test_a_run_reports_it(bert):
    gates = gating.inject_gates(bert, units=BOTH)
    gates.log_alpha.data[-1] = -9.0
    with gates.detached() as model:
        dense = copy.deepcopy(model)
    report = gating.finalize(bert.eval(), gates)
    summary = Summary()
    summary.compare_models(dense, bert)
    numbers = summary.flat()
    assert (numbers["num_blocks_before"], numbers["num_blocks"]) == (3, 2)
    assert report.after.units["blocks"] == 2


def test_its_latency_is_fitted(bert):
    gates = gating.inject_gates(bert, units=BOTH)
    speedup = lambda kept: 1 / (0.2 + 0.3 * kept[:12].float().mean() + 0.5 * kept[12:].float().mean())  # noqa: E731
    costs = measure_latency_costs(gates, KnownTimes(speedup))
    assert costs.shares["heads"] == pytest.approx(0.3)
    assert (costs.shares["blocks"], costs.blocks["blocks"]) == (pytest.approx(0.5), 0)


def test_its_speedup_is_a_share_of_its_cost(bert):
    alone = create_gates(bert, units="blocks")
    costs = measure_latency_costs(alone, KnownTimes(lambda kept: 1 / (0.4 + 0.6 * kept.float().mean())))
    objective = gating.ExactBudget(keep=costs.keep_for(1.2, alone), cost=costs.rates(alone))
    assert objective.kept(alone).sum() == 2


PAGE = (ROOT / "docs" / "adding-a-unit.md").read_text(encoding="utf-8")


def _names(text):
    return set(re.findall(r"`(\w+)(?:\(\w*\))?`", text))


def _part(begin, end):
    return PAGE[PAGE.index(begin) : PAGE.index(end, PAGE.index(begin))]


def test_every_path_on_the_page_is_there():
    for path in re.findall(r"\]\((\.\./[^)#]+)", PAGE):
        assert (ROOT / "docs" / path).exists(), path


def test_the_page_names_two_new_files_and_one_table():
    rows = [line for line in _part("| file |", "One further").splitlines()[2:] if line.startswith("|")]
    assert len(rows) == 3


@pytest.mark.parametrize(
    ("row", "sign"),
    [
        ("| a number of its own", r"num_neurons: (int|Number)\b"),
    ],
)
def test_the_page_names_every_file_of_a_number_or_a_record(row, sign):
    named = re.findall(r"\(\.\./([^)]+)\)", _part(row, "\n"))
    modules = [path for path in (ROOT / "gating").rglob("*.py") if "structure" not in path.parts]
    found = [path for path in modules if re.search(sign, path.read_text(encoding="utf-8"), re.M)]
    assert found
    for path in (str(path.relative_to(ROOT)) for path in found):
        assert any(path == each or path.startswith(f"{each}/") for each in named), path


def test_the_page_names_every_attribute_of_a_block():
    members = {name for name in {*Block.__annotations__, *vars(Block)} if not name.startswith("_")}
    assert members <= _names(_part("## The block", "## The unit"))


def test_the_page_names_every_attribute_of_a_unit_and_those_without_default():
    members = {name for name in {*Unit.__annotations__, *vars(Unit)} if not name.startswith("_")}
    table = _part("| asked |", "Most have")
    asked = [_names(line.split("|")[1]) for line in table.splitlines()[2:] if line.startswith("|")]
    assert set().union(*asked) == members
    without = {name for name in members if not hasattr(Unit, name)} | Unit.__abstractmethods__
    assert asked[0] | _names(_part("Most have", "have none")) == without


# The padding of groups of heads is planned for all blocks at once.
ABOUT_ONE_UNIT = {"pruning/plan.py"}
ASKS = re.compile(
    r"""isinstance\([^)]*(AttentionBlock|FeedForwardBlock|ExpertsBlock)|(==|in|is) \(?"(heads|neurons|feed_forward)"|"""
    r"""len\((gates\.)?units\) == 2|gates\.(heads|neurons)_per_gate|(if|not|and|or) gates\.num_neurons"""
)


FOLDERS = ["proof", "gates", "objectives", "pruning", "integrations", "training", "sharding", "run"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_asks_which_unit_it_is(folder):
    package = ROOT / "gating"
    asking = {
        str(path.relative_to(package))
        for path in (package / folder).rglob("*.py")
        if ASKS.search(path.read_text(encoding="utf-8"))
    }
    assert asking <= ABOUT_ONE_UNIT
