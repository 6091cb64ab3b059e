import copy
import warnings

import pytest
import torch
from transformers.models.bert.modeling_bert import BertSelfAttention

import gating
from gating.pruning.finalize import decide_gate_values
from gating.structure.families import _REGISTERED, _find_row
from tests.support.tiny_models import (
    NUM_HEADS,
    NUM_LAYERS,
    assert_same_state,
    batch_for,
    build,
    hooks_of,
    logits_of,
    state_of,
)

TOTAL = NUM_LAYERS * NUM_HEADS
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # Single precision, sums in another order.


def spread_gates(model, *, seed=0, **options):
    """Inject gates: some closed, some open, some in between."""
    gates = gating.inject_gates(model, **options)
    with torch.no_grad():
        gates.log_alpha.copy_(3 * torch.randn(gates.num_heads, generator=torch.Generator().manual_seed(seed)))
    return gates


def fixed_logits(model, gates, values, batch):
    with gates.fixed_at(values):
        return logits_of(model, batch)


@pytest.mark.parametrize("seed", [0, 1])
def test_folding_fractional_gates_equals_the_gated_model(model, seed):
    batch = batch_for(model)
    gates = spread_gates(model.eval(), seed=seed)
    values = gates.values().detach()
    assert ((values > 0) & (values < 1)).any()
    assert (values == 0).any()
    expected = fixed_logits(model, gates, values, batch)
    report = gating.finalize(model, gates)
    torch.testing.assert_close(logits_of(model, batch), expected, **TOLERANCE)
    assert report.num_heads == int((values > 0).sum())
    assert report.max_difference < 1e-5


@pytest.mark.parametrize("num_heads", [1, 3, 7, TOTAL])
def test_exactly_so_many_heads_stay(model, num_heads):
    batch = batch_for(model)
    gates = spread_gates(model)
    values = decide_gate_values(gates, num_heads=num_heads)
    best = set(gates.log_alpha.topk(num_heads).indices.tolist())
    expected = fixed_logits(model, gates, values, batch)
    report = gating.finalize(model, gates, num_heads=num_heads)
    kept = {NUM_HEADS * layer + head for layer, heads in enumerate(report.kept_heads.values()) for head in heads}
    assert kept == best
    assert report.num_heads == num_heads
    assert sum(block.num_heads for block in gating.find_attention_blocks(model)) == num_heads
    torch.testing.assert_close(logits_of(model, batch), expected, **TOLERANCE)


def test_a_kept_head_whose_gate_reads_zero_comes_in_as_strongly_as_on_average(bert):
    gates = gating.inject_gates(bert)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.linspace(-4, -3, TOTAL))
    assert gates.num_open() == 0
    values = decide_gate_values(gates, num_heads=5)
    assert (values > 0).sum() == 5
    torch.testing.assert_close(values[-5:], gates.prob_open().detach()[-5:])
    assert (values[:-5] == 0).all()


def test_equal_gates_still_give_the_exact_number(bert):
    assert gating.finalize(bert, gating.inject_gates(bert), num_heads=5).num_heads == 5


def test_a_budget_ends_in_its_number_of_heads(bert):
    gates = spread_gates(bert)
    objective = gating.ExactBudget(num_heads=4)
    objective.attach(gates)
    objective.update(gates, 1.0)
    report = gating.finalize(bert, gates, kept=objective.kept(gates))
    assert report.num_heads == 4


def test_gates_are_gone_afterwards(model):
    plain = str(model)
    gates = gating.inject_gates(model)
    gating.finalize(model, gates, num_heads=TOTAL)
    assert hooks_of(model) == 0
    assert not hasattr(model, "head_gates")
    assert str(model) == plain
    assert not [name for name in model.state_dict() if "gate" in name or "log_alpha" in name]


def test_the_report_counts_before_and_after(bert):
    before = sum(parameter.numel() for parameter in bert.parameters())
    report = gating.finalize(bert, spread_gates(bert), num_heads=5)
    assert (report.num_heads_before, report.num_heads) == (TOTAL, 5)
    assert report.num_parameters_before == before
    assert report.num_parameters == sum(parameter.numel() for parameter in bert.parameters()) < before
    assert list(report.kept_heads) == [block.name for block in gating.find_attention_blocks(bert)]


def test_the_mode_of_the_model_stays(bert):
    bert.train()
    gating.finalize(bert, spread_gates(bert), num_heads=5)
    assert bert.training


def test_a_half_precision_model_can_be_finalized(bert):
    gates = spread_gates(bert.to(torch.bfloat16))
    assert gating.finalize(bert, gates, num_heads=5).num_heads == 5
    assert {parameter.dtype for parameter in bert.parameters()} == {torch.bfloat16}


def test_frozen_output_projections_stay_frozen(bert):
    for block in gating.find_attention_blocks(bert):
        block.output_projection.weight.requires_grad_(False)
    gating.finalize(bert, spread_gates(bert), num_heads=7)
    for block in gating.find_attention_blocks(bert):
        assert not block.output_projection.weight.requires_grad


def test_excluded_blocks_keep_every_head(bert):
    name = "encoder.layer.1.attention.self"
    batch = batch_for(bert)
    gates = spread_gates(bert, exclude=[name])
    expected = fixed_logits(bert, gates, gates.values().detach(), batch)
    report = gating.finalize(bert, gates)
    assert report.kept_heads[name] == (0, 1, 2, 3)
    torch.testing.assert_close(logits_of(bert, batch), expected, **TOLERANCE)


def test_a_compact_model_can_be_gated_and_finalized_again(bert):
    gating.prune_heads(bert, {0: [0], 1: range(NUM_HEADS)})
    batch = batch_for(bert)
    gates = gating.inject_gates(bert)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.tensor([9, -9, 9, 9, -9, -9, 9.0]))
    expected = logits_of(bert.eval(), batch)
    report = gating.finalize(bert, gates)
    assert list(report.kept_heads.values()) == [(1, 3), (), (0, 3)]
    torch.testing.assert_close(logits_of(bert, batch), expected, **TOLERANCE)


def test_a_probe_of_the_caller_is_used(bert):
    gates = spread_gates(bert)
    probe = {"input_ids": torch.full((1, 4), 7)}
    seen = []
    handle = bert.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
    gating.finalize(bert, gates, num_heads=5, probe=probe)
    handle.remove()
    assert len(seen) == 3  # masked, masked with one rounding, compact
    assert all(torch.equal(tokens, probe["input_ids"]) for tokens in seen)


def test_a_model_with_short_texts_can_be_finalized():
    model = build("bert", max_position_embeddings=8)
    assert gating.finalize(model, spread_gates(model), num_heads=5).num_heads == 5


def assert_untouched(model, before):
    """Fail unless weights, gates, hooks, classes and outputs are those of the copy ``before``."""
    assert_same_state(model, before["state"])
    assert hooks_of(model) == before["hooks"]
    assert str(model) == before["text"]
    assert model.head_gates is before["gates"]
    assert type(model) is before["class"]
    assert not hasattr(model.config, "head_gating")
    assert torch.equal(logits_of(model.eval(), batch_for(model)), before["logits"])
    assert [block.num_heads for block in gating.find_attention_blocks(model)] == before["heads"]


def remember(model):
    return {
        "state": state_of(model),
        "hooks": hooks_of(model),
        "text": str(model),
        "gates": model.head_gates,
        "class": type(model),
        "logits": logits_of(model.eval(), batch_for(model)),
        "heads": [block.num_heads for block in gating.find_attention_blocks(model)],
    }


@pytest.mark.parametrize("num_heads", [0, -1, TOTAL + 1])
def test_a_number_out_of_range_is_refused_and_changes_nothing(bert, num_heads):
    gates = spread_gates(bert)
    before = remember(bert)
    with pytest.raises(ValueError, match=f"num_heads={num_heads} cannot be kept: there are {TOTAL} gated heads"):
        gating.finalize(bert, gates, num_heads=num_heads)
    assert_untouched(bert, before)


def test_closing_every_gate_is_refused_and_changes_nothing(bert):
    gates = gating.inject_gates(bert)
    with torch.no_grad():
        gates.log_alpha.fill_(-9)
    before = remember(bert)
    with pytest.raises(ValueError, match="Every gate is closed"):
        gating.finalize(bert, gates)
    assert_untouched(bert, before)


def test_gates_of_another_model_are_refused(bert):
    twin = copy.deepcopy(bert)
    gating.inject_gates(bert)
    before = remember(bert)
    with pytest.raises(ValueError, match="gates"):
        gating.finalize(bert, gating.inject_gates(twin), num_heads=5)
    assert_untouched(bert, before)


class OddSelfAttention(BertSelfAttention):
    """An attention class that tests describe wrongly."""

    half_dim = 4  # Half of a head, which a wrong spec takes for the whole.


RIGHT = gating.AttentionSpec(
    (("query", "q"), ("key", "k"), ("value", "v")), "^output.dense", head_dim="attention_head_size", returns="context"
)
HALVES = gating.AttentionSpec(RIGHT.projections, "^output.dense", head_dim="half_dim", returns="context")
NO_SUCH_PATH = gating.AttentionSpec(
    (("query", "q"), ("key", "k"), ("valve", "v")),
    "^output.dense",
    head_dim="attention_head_size",
    returns="context",
)


@pytest.fixture
def odd_model(bert):
    """A model with an attention class of its own; the registry is restored afterwards."""
    before = dict(_REGISTERED)
    for layer in bert.bert.encoder.layer:
        layer.attention.self.__class__ = OddSelfAttention
    yield bert
    _REGISTERED.clear()
    _REGISTERED.update(before)
    _find_row.cache_clear()


@pytest.mark.parametrize(
    ("spec", "open_gates", "error", "message"),
    [
        # Two halves of different heads make one head of the right width and the wrong content.
        (HALVES, [1, 0, 1, 0, 1, 1, 1, 1], RuntimeError, "OddSelfAttention.*Nothing was changed"),
        # An odd number of halves does not even pass through the model.
        (HALVES, [1, 0, 1, 1, 1, 1, 1, 1], (RuntimeError, ValueError), "."),
    ],
    ids=["other outputs", "failing forward"],
)
@pytest.mark.parametrize("training", [False, True])
def test_a_wrong_spec_is_refused_and_everything_restored(odd_model, spec, open_gates, error, message, training):
    gating.register_attention_spec("OddSelfAttention", spec)
    gates = gating.inject_gates(odd_model)
    with torch.no_grad():
        # Open by half, so that values were folded in before the failure.
        gates.log_alpha.copy_(torch.tensor(open_gates * NUM_LAYERS) * 9.0 - 9.0)
    before = remember(odd_model)
    odd_model.train(training)
    with pytest.raises(error, match=message):
        gating.finalize(odd_model, gates)
    assert odd_model.training == training
    assert gates.training == training
    assert_untouched(odd_model, before)


def test_a_spec_that_does_not_fit_is_refused_at_once(odd_model):
    gating.register_attention_spec("OddSelfAttention", NO_SUCH_PATH)
    with pytest.raises(ValueError, match="valve"):
        gating.inject_gates(odd_model)


def test_after_a_refusal_the_right_spec_works(odd_model):
    gating.register_attention_spec("OddSelfAttention", HALVES)
    gates = gating.inject_gates(odd_model)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.tensor([1, 0, 1, 0, 1, 1, 1, 1] * NUM_LAYERS) * 18.0 - 9.0)
    with pytest.raises(RuntimeError):
        gating.finalize(odd_model, gates)
    gates.remove()
    gating.register_attention_spec("OddSelfAttention", RIGHT)
    assert gating.finalize(odd_model, gating.inject_gates(odd_model), num_heads=5).num_heads == 5


def test_a_model_that_has_diverged_is_refused(make_model):
    model = make_model("bert")
    gates = gating.inject_gates(model)
    with torch.no_grad():
        gates.log_alpha.fill_(float("nan"))
    with pytest.raises(ValueError, match="diverged"):
        gating.finalize(model, gates, num_heads=2)
    assert model.head_gates is gates


def train_gates(model, *, lr, updates, steps=60):
    """Train gates alone, so that their objective closes them, unless the learning rate or the updates fail it."""
    gates, objective = gating.inject_gates(model), gating.ExactBudget(num_heads=4)
    objective.attach(gates)
    batch, labels = batch_for(model), torch.tensor([0, 1])
    optimizer = torch.optim.Adam([gates.log_alpha], lr=lr)
    torch.manual_seed(0)
    for step in range(steps):
        if updates:
            objective.update(gates, step / steps)
        loss = torch.nn.functional.cross_entropy(model.train()(**batch).logits, labels)
        (loss + objective.penalty(gates)).backward()
        optimizer.step()
        optimizer.zero_grad()
    if updates:
        objective.update(gates, 1.0)
    return gates


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"lr": 0.3, "updates": False},
            r"the gates to keep \(4\) are at .* those to remove \(8\) at .* 12 of all are open",
        ),
        ({"lr": 2e-5, "updates": True}, "nearly arbitrary"),
    ],
)
def test_gates_that_nobody_trained_are_told(bert, options, message):
    gates = train_gates(bert, **options)
    with pytest.warns(UserWarning, match=message):
        assert gating.finalize(bert, gates, num_heads=4).num_heads == 4


def test_trained_gates_are_cut_without_a_word(bert):
    gates = train_gates(bert, lr=0.5, updates=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gating.finalize(bert, gates, num_heads=4).num_heads == 4


def test_gates_that_are_all_closed_are_told(bert):
    gates = gating.inject_gates(bert)
    with torch.no_grad():
        gates.log_alpha.fill_(-8)
    with pytest.warns(UserWarning, match="nearly arbitrary"):
        gating.finalize(bert, gates, num_heads=4)


@pytest.mark.parametrize("locations", [[5] * 8 + [-5] * 4, [5] * 7 + [-5] * 5, [3] * 4 + [2.9] * 4 + [-5] * 4])
def test_heads_that_are_chosen_among_equally_open_gates_are_told(bert, locations):
    gates = gating.inject_gates(bert)
    gates.log_alpha.data = torch.tensor(locations, dtype=torch.float32)
    with pytest.warns(UserWarning, match=r"nearly arbitrary: .* of which [34] are no more than 0\.1 below the former"):
        gating.finalize(bert, gates, num_heads=4)


@pytest.mark.parametrize("num_open", [0, 1, 2])
def test_heads_that_are_kept_although_their_gates_are_closed_are_told(bert, num_open):
    gates = gating.inject_gates(bert)
    gates.log_alpha.data = torch.tensor([5.0] * num_open + [-5.0] * (12 - num_open))
    with pytest.warns(UserWarning, match=f"of 4 heads or groups to keep, {num_open} have an open gate. Keep fewer"):
        gating.finalize(bert, gates, num_heads=4)


def test_a_choice_made_without_gates_is_not_called_arbitrary(bert):
    gates = gating.inject_gates(bert)
    kept = torch.arange(gates.log_alpha.numel()) < 4
    with pytest.warns(UserWarning, match=r"Gates hardly tell .* Unless they were chosen without gates, train"):
        gating.finalize(bert, gates, kept=kept)


@pytest.mark.parametrize("moved", [False, True])
def test_a_model_on_the_meta_device_is_refused(bert, moved):
    with torch.device("meta"):
        model = bert if moved else type(bert)(bert.config)
    gates = gating.inject_gates(model)
    model.to("meta")
    with pytest.raises(ValueError, match=r"is on the meta device\. Load its weights first"):
        gating.finalize(model, gates, num_heads=4)
    assert model.head_gates is gates


@pytest.mark.parametrize("probe", [{"words": torch.zeros(1, 3)}, {"input_ids": torch.full((1, 3), 1000)}, [1, 2]])
def test_a_probe_that_the_model_does_not_take_is_told(bert, probe):
    gates = spread_gates(bert)
    state = state_of(bert)
    with pytest.raises(ValueError, match=r"pass probe=\{argument name: tensor, ...\}, one batch that the model takes"):
        gating.finalize(bert, gates, num_heads=5, probe=probe)
    assert_same_state(bert, state)
    assert bert.head_gates is gates


def test_few_removed_heads_are_no_cause_for_a_warning(bert):
    gates = gating.inject_gates(bert)
    with torch.no_grad():
        gates.log_alpha.fill_(6.0)[3] = -1.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gating.finalize(bert, gates, num_heads=11).num_heads == 11


@pytest.mark.parametrize(
    "options", [{"num_heads": 4.0}, {"num_heads": "4"}, {"num_heads": True}, {"kept": [True] * 12}]
)
def test_other_kinds_of_numbers_and_choices_are_told(options, bert):
    gates = gating.inject_gates(bert)
    with pytest.raises(TypeError, match="must be a"):
        gating.finalize(bert, gates, **options)
    assert bert.head_gates is gates
