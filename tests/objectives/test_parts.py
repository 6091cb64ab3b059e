"""A budget for each kind of attention: exactly met for each, by every objective that has a number."""

import math

import pytest
import torch
import transformers

import gating
from gating.gates import hard_concrete
from gating.objectives.parts import parts_of
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from gating.pruning.finalize import decide_gate_values
from gating.pruning.measure import count_heads_by_kind
from tests.support.family_models import FAMILIES
from tests.support.gated import num_kept
from tests.support.search import RIVALS, Search
from tests.support.tiers import first_of

SHIFT = 2 / 3 * math.log(0.1 / 1.1)
STEPS = 8
# The tiny BART has 8 heads in its encoder, 12 in its decoder, 12 across.
WANTED = {"encoder": 5, "decoder": 3, "cross": 7}


def build_bert_to_gpt2():
    bert = transformers.BertConfig(vocab_size=30, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    gpt2 = transformers.GPT2Config(vocab_size=30, n_embd=32, n_layer=1, n_head=2)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(bert, gpt2)
    config.decoder_start_token_id = config.pad_token_id = 0
    return transformers.EncoderDecoderModel(config=config)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("t5", {"encoder": 12, "decoder": 12, "cross": 12}),
        ("bart", {"encoder": 8, "decoder": 12, "cross": 12}),
        ("marian", {"encoder": 8, "decoder": 12, "cross": 12}),
        ("whisper", {"encoder": 8, "decoder": 12, "cross": 12}),
        ("t5gemma", {"encoder": 24, "decoder": 24, "cross": 24}),
        ("blip", {"vision": 8, "language_decoder": 8, "language_cross": 8}),
        ("bert", {"encoder": 12}),
        ("bert-decoder", {"encoder": 12}),
        ("opt", {"decoder": 12}),
        ("gpt2-cross", {"self": 12, "cross": 12}),
        ("llama", {"self": 24}),
    ],
)
def test_heads_are_counted_for_each_kind_of_attention(family, expected):
    assert count_heads_by_kind(FAMILIES[family].build()) == expected


def test_the_encoder_inside_of_a_decoder_is_decoder():
    assert count_heads_by_kind(build_bert_to_gpt2()) == {"encoder": 2, "decoder": 2, "cross": 2}


def search_with(objective, family="bart"):
    model = FAMILIES[family].build()
    return Search(model, objective, steps=STEPS, batch=make_probe(model), lr=1e-4)


@pytest.mark.parametrize("rival", RIVALS)
def test_every_kind_ends_with_exactly_its_number(rival):
    torch.manual_seed(0)
    search = search_with(RIVALS[rival](num_heads=WANTED, min_per_layer=1)).run(0, STEPS)
    kept = search.kept()
    assert num_kept(search.gates, search.objective) == 15
    assert search.objective.target(search.gates) == pytest.approx(15)
    model = search.model.eval()
    values = decide_gate_values(search.gates, kept=kept)
    with search.gates.fixed_at(values):
        masked = forward_outputs(model, search.batch)
    report = gating.finalize(model, search.gates, kept=kept)
    assert count_heads_by_kind(model) == WANTED
    assert min(map(len, report.kept_heads.values())) >= 1
    # Rounding of another order of summation.
    assert max_relative_difference(masked, forward_outputs(model, search.batch)) < 1e-5


@pytest.mark.parametrize("family", ["t5", "marian", "whisper"])
def test_families_with_two_towers_keep_their_budgets(family):
    model = FAMILIES[family].build()
    gates, objective = gating.inject_gates(model), gating.ExactBudget(num_heads=WANTED)
    objective.attach(gates)
    with torch.no_grad():
        gates.log_alpha.normal_(generator=torch.Generator().manual_seed(1))
    objective.update(gates, 1.0)
    gating.finalize(model, gates, kept=objective.kept(gates))
    assert count_heads_by_kind(model) == WANTED


@pytest.mark.parametrize("rival", first_of(RIVALS, every=4))
def test_groups_of_query_heads_have_budgets_per_kind(rival):
    torch.manual_seed(0)
    search = search_with(RIVALS[rival](keep={"encoder": 0.5, "cross": 0.25}, min_per_layer=1), "t5gemma").run(0, 2)
    gating.finalize(search.model.eval(), search.gates, kept=search.kept())
    assert count_heads_by_kind(search.model) == {"encoder": 12, "decoder": 24, "cross": 6}


def test_shares_are_rounded_to_groups_and_numbers_are_not():
    gates = gating.inject_gates(FAMILIES["t5gemma"].build())
    assert num_kept(gates, gating.ExactBudget(keep={"encoder": 0.3})) == 24 + 24 + 6
    with pytest.raises(ValueError, match=r"num_heads\.cross=5"):
        gating.ExactBudget(num_heads={"cross": 5}).attach(gates)


@pytest.mark.parametrize("rival", ["budget", "gumbel", "straight_through"])
def test_the_budget_of_every_kind_is_met_at_every_step(rival):
    torch.manual_seed(0)
    search = search_with(RIVALS[rival](num_heads=WANTED, schedule=gating.BudgetSchedule(start=0.0, end=0.5)))
    parts = parts_of(search.gates, unit="heads", by="kind")
    assert [part.kind for part in parts] == ["encoder", "decoder", "cross"]
    with torch.no_grad():
        search.gates.log_alpha.normal_(generator=torch.Generator().manual_seed(0))
    for step in range(9):
        search.objective.update(search.gates, step / 8)
        probs = search.gates.prob_open()
        open_heads = {part.kind: probs[list(part.gates)].sum().item() for part in parts}
        assert sum(open_heads.values()) == pytest.approx(search.objective.target(search.gates), abs=1e-2)
        if step >= 4:
            assert open_heads == pytest.approx(WANTED, abs=1e-2)


def test_heads_compete_with_those_of_their_kind_only():
    search = search_with(gating.ExactBudget(num_heads=WANTED))
    search.objective.update(search.gates, 1.0)
    before = search.gates.prob_open().detach()
    cross = list(parts_of(search.gates, unit="heads", by="kind")[2].gates)
    with torch.no_grad():
        search.gates.log_alpha[cross[0]] += 2
    changed = (search.gates.prob_open().detach() - before).abs() > 1e-4
    assert changed.nonzero().flatten().tolist() == cross


def test_the_gradient_of_a_budget_per_kind_is_that_of_the_implicit_functions():
    """With z_i = f(log_alpha_i - c_kind), dc_kind / dlog_alpha_i = p_i (1 - p_i) / sum of these within the kind."""
    search = search_with(gating.ExactBudget(num_heads=WANTED))
    gates = search.gates
    with torch.no_grad():
        gates.log_alpha.normal_(generator=torch.Generator().manual_seed(5))
    search.objective.update(gates, 1.0)
    weights = torch.linspace(-1, 1, 32)
    located = gates.constrained_log_alpha()
    (located * weights).sum().backward()
    expected = torch.empty(32)
    for part in parts_of(gates, unit="heads", by="kind"):
        its = list(part.gates)
        p = torch.sigmoid(located.detach()[its] - SHIFT)
        assert p.sum().item() == pytest.approx(WANTED[part.kind], abs=1e-3)
        slopes = p * (1 - p)
        expected[its] = weights[its] - weights[its].sum() * slopes / slopes.sum()
    torch.testing.assert_close(gates.log_alpha.grad, expected, rtol=1e-3, atol=1e-5)


def test_the_lagrangian_has_multipliers_per_kind():
    search = search_with(gating.Lagrangian(num_heads=WANTED))
    gates, objective = search.gates, search.objective
    with torch.no_grad():
        gates.log_alpha.copy_(torch.linspace(-3, 3, 32))
        objective.lambda_1.copy_(torch.tensor([0.7, -0.2, 1.0]))
        objective.lambda_2.copy_(torch.tensor([3.0, 0.0, 1.0]))
    objective.update(gates, 1.0)
    penalty = objective.penalty(gates)
    penalty.backward()
    by_hand, p = 0.0, torch.sigmoid(torch.linspace(-3, 3, 32) - SHIFT)
    for number, part in enumerate(parts_of(gates, unit="heads", by="kind")):
        its = list(part.gates)
        missed = 1 - p[its].sum().item() / len(its) - (1 - WANTED[part.kind] / len(its))
        one, two = ((0.7, 3.0), (-0.2, 0.0), (1.0, 1.0))[number]
        by_hand += one * missed + two * missed**2
        assert objective.lambda_1.grad[number].item() == pytest.approx(missed, rel=1e-4)
        gradient = (one + 2 * two * missed) * -p[its] * (1 - p[its]) / len(its)
        torch.testing.assert_close(gates.log_alpha.grad[its], gradient, rtol=1e-4, atol=1e-6)
    assert penalty.item() == pytest.approx(by_hand, rel=1e-4)


def test_parts_have_every_gate_once_and_one_number_is_one_part():
    gates = gating.inject_gates(FAMILIES["t5"].build())
    parts = parts_of(gates, unit="heads", by="kind")
    assert sorted(gate for part in parts for gate in part.gates) == list(range(36))
    assert len(parts_of(gates, unit="heads")) == 1


def test_the_only_kind_of_a_model_may_be_named():
    gates = gating.inject_gates(FAMILIES["bert"].build())
    objective = gating.ExactBudget(num_heads={"encoder": 5})
    objective.attach(gates)
    objective.update(gates, 1.0)
    probs = hard_concrete.prob_open(
        gates.constrained_log_alpha(), temperature=gates.temperature, stretch_limits=gates.stretch_limits
    )
    assert probs.sum().item() == pytest.approx(5, abs=1e-3)
