"""Models, gates and arguments that cannot be finalized; nothing changes then."""

import copy

import pytest
import torch
from transformers.models.bert.modeling_bert import BertSelfAttention

import gating
from tests.support.tiny_models import NUM_LAYERS, assert_same_state, batch_for, hooks_of, logits_of, state_of


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


def test_gates_of_another_model_are_refused(bert):
    twin = copy.deepcopy(bert)
    gating.inject_gates(bert)
    before = remember(bert)
    with pytest.raises(ValueError, match="gates"):
        gating.finalize(bert, gating.inject_gates(twin), num_heads=5)
    assert_untouched(bert, before)


class OddSelfAttention(BertSelfAttention):
    """An attention class for which tests register wrong specs."""

    half_dim = 4  # Half of a head, which a wrong spec takes for the whole.


RIGHT = gating.AttentionSpec(
    (("query", "q"), ("key", "k"), ("value", "v")), "^output.dense", head_dim="attention_head_size", returns="context"
)
HALVES = gating.AttentionSpec(RIGHT.projections, "^output.dense", head_dim="half_dim", returns="context")


@pytest.fixture
def odd_model(bert, monkeypatch):
    """A model with an attention class of its own, without the trial before training: it is the proof that is tested."""
    monkeypatch.setattr("gating.gates.inject._prove_foreign_blocks", lambda *_args, **_kwargs: None)
    for layer in bert.bert.encoder.layer:
        layer.attention.self.__class__ = OddSelfAttention
    return bert


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_wrong_spec_is_refused_in_half_precision(odd_model, dtype):
    gating.register_attention_spec("OddSelfAttention", HALVES)
    # Only the attention's weights differ between the halves of a head; of a new model they are nearly uniform.
    with torch.no_grad():
        for layer in odd_model.bert.encoder.layer:
            for linear in (layer.attention.self.query, layer.attention.self.key):
                linear.weight.mul_(32)
            layer.attention.output.dense.weight.mul_(4)
    gates = gating.inject_gates(odd_model.to(dtype))
    with torch.no_grad():
        gates.log_alpha.copy_(torch.tensor([1, 0, 1, 0, 1, 1, 1, 1] * NUM_LAYERS) * 18.0 - 9.0)
    with pytest.raises(RuntimeError, match="OddSelfAttention"):
        gating.finalize(odd_model, gates)


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
