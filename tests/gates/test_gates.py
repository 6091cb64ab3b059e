import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MBartConfig,
    OPTConfig,
)

import gating
from gating.gates import hard_concrete
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
_SEQ2SEQ = {"vocab_size": 30, "d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 16}
CAUSAL = {
    "opt": OPTConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=16,
        word_embed_proj_dim=16,
        max_position_embeddings=16,
    ),
    "bart": BartConfig(**_SEQ2SEQ, is_decoder=True, is_encoder_decoder=False),
    "mbart": MBartConfig(**_SEQ2SEQ, is_decoder=True, is_encoder_decoder=False),
    "marian": MarianConfig(**_SEQ2SEQ, is_decoder=True, is_encoder_decoder=False, pad_token_id=0),
    "gpt2": GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=4),
}


def without_dropout(model):
    """Make training mode deterministic but for the gates."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    for name in ("attention_probs_dropout_prob", "attention_dropout", "hidden_dropout_prob"):
        if hasattr(model.config, name):
            setattr(model.config, name, 0.0)
    return model


def seen_scales(model, batch):
    """Return what every output projection's input was multiplied by in one forward pass, block by block."""
    scales = []
    blocks = gating.find_attention_blocks(model)
    inputs = {}

    def before(module, args):
        inputs[module] = args[0]

    def after(module, args):
        scales.append((args[0] / inputs[module]).detach())

    handles = [block.output_projection.register_forward_pre_hook(before, prepend=True) for block in blocks]
    handles += [block.output_projection.register_forward_pre_hook(after) for block in blocks]
    try:
        model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return scales


def test_open_gates_change_no_bit_in_evaluation(model):
    batch = batch_for(model)
    expected = logits_of(model, batch)
    gates = gating.inject_gates(model)
    with gates.fixed_at(torch.ones(TOTAL)):
        assert torch.equal(logits_of(model, batch), expected)


def test_gates_start_nearly_open(bert):
    gates = gating.inject_gates(bert)
    assert gates.num_open() == gates.num_heads == TOTAL
    # sigmoid(log(.98 / .02) + 2/3 log(1/11)) * 1.2 - .1
    torch.testing.assert_close(gates.values(), torch.full((TOTAL,), 0.9899), rtol=0, atol=1e-3)


@pytest.mark.parametrize("training", [False, True])
def test_gates_are_injected_in_the_mode_of_the_model(bert, training):
    bert.train(training)
    gates = gating.inject_gates(bert)
    assert all(module.training == training for module in (bert, gates, *gates.modules(), *bert.modules()))


def test_open_gates_change_no_bit_in_training(model):
    batch = batch_for(model)
    model.train()
    torch.manual_seed(0)
    expected = logits_of(model, batch)
    gates = gating.inject_gates(model)
    torch.manual_seed(0)
    with gates.fixed_at(torch.ones(TOTAL)):
        assert torch.equal(logits_of(model, batch), expected)


def test_gate_values_scale_their_columns_of_the_output_projection(model):
    batch = batch_for(model)
    reference = copy.deepcopy(model)
    values = torch.tensor([0.0, 1.0, 0.25, 0.0] * NUM_LAYERS).roll(2)
    for block, block_values in zip(gating.find_attention_blocks(reference), values.split(NUM_HEADS), strict=True):
        with torch.no_grad():
            block.output_projection.weight *= block_values.repeat_interleave(block.head_dim)
    gates = gating.inject_gates(model)
    with gates.fixed_at(values):
        found = logits_of(model, batch)
    # Zeros, ones and quarters scale without rounding; only sums over other orders could differ.
    torch.testing.assert_close(found, logits_of(reference, batch), rtol=0, atol=1e-5)


def test_closed_gates_of_one_block_leave_the_others_alone(bert):
    gates = gating.inject_gates(bert)
    values = torch.ones(TOTAL)
    values[5] = 0.0
    with gates.fixed_at(values):
        scales = seen_scales(bert, batch_for(bert))
    assert [scale.flatten(0, 1)[0].reshape(NUM_HEADS, -1).mean(1).tolist() for scale in scales] == [
        [1, 1, 1, 1],
        [1, 0, 1, 1],
        [1, 1, 1, 1],
    ]


def test_one_sample_serves_the_whole_forward_pass(bert, monkeypatch):
    gates = gating.inject_gates(without_dropout(bert), init_prob_open=0.6)
    drawn = []
    sample = hard_concrete.sample
    monkeypatch.setattr(
        hard_concrete, "sample", lambda *args, **kwargs: drawn.append(sample(*args, **kwargs)) or drawn[-1]
    )
    scales = seen_scales(bert.train(), batch_for(bert))
    assert len(drawn) == 1
    for scale, values in zip(scales, drawn[0].split(gates.block_sizes), strict=True):
        rows = scale.flatten(0, 1)
        # A quotient of the inputs after and before, so rounded.
        torch.testing.assert_close(rows, values.detach().repeat_interleave(8).expand_as(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("where", ["frozen gates", "a part without gradient"])
def test_one_sample_serves_the_whole_forward_pass_without_gradients(bert, monkeypatch, where):
    gates = gating.inject_gates(bert, init_prob_open=0.6)
    draws = []
    sample = gates.sample
    monkeypatch.setattr(gates, "sample", lambda: draws.append(1) or sample())
    if where == "frozen gates":
        gates.requires_grad_(False)
    else:
        first = bert.bert.encoder.layer[0]
        monkeypatch.setattr(first, "forward", torch.no_grad()(first.forward))
    bert.train()(**batch_for(bert))
    assert len(draws) == 1


def test_two_training_passes_draw_different_gates(bert):
    gating.inject_gates(without_dropout(bert), init_prob_open=0.6)
    batch = batch_for(bert)
    bert.train()
    assert not torch.equal(logits_of(bert, batch), logits_of(bert, batch))


def test_the_seed_repeats_a_training_pass(bert):
    gating.inject_gates(bert, init_prob_open=0.6)
    batch = batch_for(bert)
    bert.train()
    torch.manual_seed(5)
    first = logits_of(bert, batch)
    torch.manual_seed(5)
    assert torch.equal(logits_of(bert, batch), first)


def test_evaluation_is_deterministic_and_draws_nothing(bert):
    gates = gating.inject_gates(bert, init_prob_open=0.6)
    batch = batch_for(bert)
    state = torch.get_rng_state()
    first = logits_of(bert, batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logits_of(bert, batch), first)
    with gates.fixed_at(gates.values().detach()):
        assert torch.equal(logits_of(bert, batch), first)


def test_evaluation_follows_a_change_of_the_gates(bert):
    gates = gating.inject_gates(bert)
    batch = batch_for(bert)
    before = logits_of(bert, batch)
    with torch.no_grad():
        gates.log_alpha[:6] = -5.0
    assert not torch.equal(logits_of(bert, batch), before)


def test_the_gradient_reaches_every_gate(model):
    gates = gating.inject_gates(model, init_prob_open=0.6)
    torch.manual_seed(0)
    for _ in range(10):  # In one draw some gates are saturated and get none.
        model.train()(**batch_for(model)).logits.square().sum().backward()
    assert gates.log_alpha.grad.isfinite().all()
    assert (gates.log_alpha.grad != 0).all()


def test_training_passes_do_not_hang_on_each_others_graph(bert):
    gating.inject_gates(bert)
    bert.train()
    for _ in range(2):
        bert(**batch_for(bert)).logits.sum().backward()


@pytest.mark.parametrize("family", ["opt", "bart", "mbart", "marian", "gpt2"])
def test_a_language_model_that_calls_a_part_of_its_inner_model_draws_once_a_pass(family, monkeypatch):
    """Two passes before the gates change, as when gradients are accumulated; OPT never calls its inner model."""
    model = AutoModelForCausalLM.from_config(CAUSAL[family]).train()
    gates = gating.inject_gates(model, init_prob_open=0.6)
    draws, sample = [], gates.sample
    monkeypatch.setattr(gates, "sample", lambda: draws.append(1) or sample())
    ids = torch.tensor([[5, 6, 7, 8]])
    for num_passes in (1, 2):
        model(input_ids=ids, labels=ids).loss.backward()
        assert len(draws) == num_passes
    model.base_model(input_ids=ids)
    assert len(draws) == 3


def test_heads_that_groups_cannot_share_are_refused():
    sizes = {"vocab_size": 9, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 16}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=8))
    with pytest.raises(ValueError, match=r"has 4 query heads for 8 key-value heads.*num_key_value_heads"):
        gating.inject_gates(model)


def test_the_inner_model_can_be_trained_alone(bert):
    gates = gating.inject_gates(bert, init_prob_open=0.6)
    bert.train()
    for _ in range(2):
        bert.bert(**batch_for(bert)).last_hidden_state.square().sum().backward()
    assert gates.log_alpha.grad.isfinite().all()


def test_the_inner_model_sees_a_change_of_the_gates(bert):
    gates = gating.inject_gates(bert)
    batch = batch_for(bert)
    with torch.no_grad():
        before = bert.bert(**batch).last_hidden_state
        gates.log_alpha[:6] = -5.0
        assert not torch.equal(bert.bert(**batch).last_hidden_state, before)


def test_a_second_injection_is_refused(bert):
    gating.inject_gates(bert)
    state, hooks = state_of(bert), hooks_of(bert)
    with pytest.raises(ValueError, match=r"has gates already; call model\.head_gates\.remove\(\) first"):
        gating.inject_gates(bert)
    assert_same_state(bert, state)
    assert hooks_of(bert) == hooks


def test_an_unknown_model_is_named_with_the_way_to_register_it():
    class StrangeAttention(nn.Module):
        pass

    class StrangeModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = StrangeAttention()

    model = StrangeModel()
    with pytest.raises(ValueError, match=r"(?s)StrangeModel.*StrangeAttention.*register_attention_spec"):
        gating.inject_gates(model)
    assert hooks_of(model) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0}, "temperature of the gates must be positive, got 0"),
        ({"temperature": -1.0}, "must be positive, got -1.0"),
        ({"temperature": float("nan")}, "must be positive, got nan"),
        ({"stretch_limits": (0.0, 1.1)}, "stretch limits .* got"),
        ({"stretch_limits": (-0.1, 1.0)}, "stretch limits .* got"),
        ({"stretch_limits": (-0.1,)}, "stretch limits .* got"),
        ({"init_prob_open": 0}, "got 0"),
        ({"init_prob_open": 1.0}, r"got 1\.0"),
        ({"init_prob_open": 98}, "got 98"),
        ({"exclude": ["encoder.layer.9.attention.self"]}, r"no attention block 'encoder\.layer\.9\.attention\.self'"),
        (
            {"exclude": [f"encoder.layer.{i}.attention.self" for i in range(NUM_LAYERS)]},
            "No attention head of .* is left",
        ),
    ],
)
def test_bad_arguments_are_refused_and_change_nothing(bert, arguments, message):
    text, state = str(bert), state_of(bert)
    with pytest.raises(ValueError, match=message):
        gating.inject_gates(bert, **arguments)
    assert str(bert) == text
    assert hooks_of(bert) == 0
    assert_same_state(bert, state)


def test_arguments_reach_the_distribution(bert):
    gates = gating.inject_gates(bert, temperature=0.5, stretch_limits=(-0.2, 1.3), init_prob_open=0.7)
    torch.testing.assert_close(gates.prob_open(), torch.full((TOTAL,), 0.7))


def test_the_default_start_is_nearly_open_but_has_a_gradient(bert):
    gates = gating.inject_gates(bert)
    torch.testing.assert_close(gates.prob_open(), torch.full((TOTAL,), 0.98))
    gates.prob_open().sum().backward()
    assert (gates.log_alpha.grad > 0.01).all()


def test_excluded_blocks_have_no_gate(bert):
    name = "encoder.layer.1.attention.self"
    gates = gating.inject_gates(bert, exclude=[name])
    assert gates.num_heads == TOTAL - NUM_HEADS
    assert name not in gates.by_block()
    with gates.fixed_at(torch.zeros(gates.num_heads)):
        scales = seen_scales(bert, batch_for(bert))
    assert [float(scale.mean()) for scale in scales] == [0, 1, 0]


def test_by_block_names_the_blocks_and_slices_the_values(model):
    gates = gating.inject_gates(model)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.linspace(-4, 4, TOTAL))
    values = gates.by_block()
    assert list(values) == [block.name for block in gating.find_attention_blocks(model)]
    assert torch.equal(torch.cat(list(values.values())), gates.values().detach())
    assert gates.num_open() == int((gates.values() > 0).sum()) < TOTAL


def test_gates_are_visible_in_the_printed_model(bert):
    gating.inject_gates(bert)
    text = str(bert)
    assert "(head_gates): HeadGates(12 heads in 3 attention blocks)" in text
    # Equal layers are printed once.
    assert "(0-2): 3 x BertLayer(" in text
    assert "(gate): _BlockGate(num_heads=4)" in text


def test_log_alpha_is_one_parameter_in_the_state(bert):
    before = set(bert.state_dict())
    gating.inject_gates(bert)
    assert set(bert.state_dict()) - before == {"head_gates.log_alpha"}
    assert [name for name, _ in bert.named_parameters() if "gate" in name] == ["head_gates.log_alpha"]


def test_remove_leaves_no_trace(model):
    text, state, hooks, batch = str(model), state_of(model), hooks_of(model), batch_for(model)
    expected = logits_of(model, batch)
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    gates = gating.inject_gates(model)
    model.train()(**batch)
    gates.remove()
    model.eval()
    assert str(model) == text
    assert_same_state(model, state)
    assert hooks_of(model) == hooks
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert torch.equal(logits_of(model, batch), expected)


def test_gates_can_be_removed_twice_and_injected_again(bert):
    gates = gating.inject_gates(bert)
    gates.remove()
    gates.remove()
    assert gating.inject_gates(bert).num_heads == TOTAL


@pytest.mark.parametrize("constrained", [False, True])
def test_a_copy_in_the_middle_of_training_is_isolated(bert, constrained):
    gates = gating.inject_gates(without_dropout(bert), init_prob_open=0.9)
    if constrained:
        gating.ExactBudget(num_heads=6).attach(gates)
    batch = batch_for(bert)
    bert.train()(**batch).logits.sum().backward()
    twin = copy.deepcopy(bert)
    assert twin.head_gates is not gates
    assert twin.head_gates.log_alpha.data_ptr() != gates.log_alpha.data_ptr()
    torch.manual_seed(1)
    expected = logits_of(bert, batch)
    torch.manual_seed(1)
    assert torch.equal(logits_of(twin, batch), expected)
    with torch.no_grad():
        twin.head_gates.log_alpha.fill_(-9.0)
    bert.eval()
    twin.eval()
    if not constrained:  # A budget shifts equal locations back.
        assert twin.head_gates.num_open() == 0
        assert not torch.equal(logits_of(twin, batch), logits_of(bert, batch))
    assert (gates.log_alpha > 0).all()


def test_removing_the_gates_of_a_copy_leaves_the_original_gated(bert):
    gates = gating.inject_gates(bert)
    twin = copy.deepcopy(bert)
    hooks = hooks_of(bert)
    twin.head_gates.remove()
    assert hooks_of(twin) == 0
    assert not hasattr(twin, "head_gates")
    assert hooks_of(bert) == hooks
    assert bert.head_gates is gates


def test_a_training_pass_of_a_copy_gives_the_copy_gradients_only(bert):
    gates = gating.inject_gates(bert, init_prob_open=0.6)
    bert.train()(**batch_for(bert))
    twin = copy.deepcopy(bert)
    twin(**batch_for(bert)).logits.sum().backward()
    assert gates.log_alpha.grad is None
    assert twin.head_gates.log_alpha.grad is not None


def test_a_half_precision_model_keeps_its_gates_in_single_precision(bert):
    gates = gating.inject_gates(bert)
    bert.to(torch.bfloat16)
    assert bert.classifier.weight.dtype == torch.bfloat16
    assert gates.log_alpha.dtype == torch.float32
    bert.train()(**batch_for(bert)).logits.sum().backward()
    assert gates.log_alpha.grad.dtype == torch.float32
    assert logits_of(bert, batch_for(bert)).dtype == torch.bfloat16


def test_gates_of_a_half_precision_model_start_in_single_precision(bert):
    gates = gating.inject_gates(bert.to(torch.bfloat16))
    assert gates.log_alpha.dtype == torch.float32


def test_gates_follow_the_model_to_a_device(bert):
    gates = gating.inject_gates(bert)
    bert.to("meta")
    assert gates.log_alpha.device.type == "meta"
    assert isinstance(gates.log_alpha, nn.Parameter)


def test_gates_work_under_bfloat16_autocast(model):
    gates = gating.inject_gates(model, init_prob_open=0.7)
    batch = batch_for(model)
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(**batch).logits.float().square().sum().backward()
    assert gates.log_alpha.grad.dtype == torch.float32
    assert gates.log_alpha.grad.isfinite().all()


def test_open_gates_change_no_bit_under_bfloat16_autocast(bert):
    batch = batch_for(bert)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = logits_of(bert, batch)
        gates = gating.inject_gates(bert)
        with gates.fixed_at(torch.ones(TOTAL)):
            assert torch.equal(logits_of(bert, batch), expected)


def test_gradient_checkpointing_gives_the_same_gradients(model):
    gates = gating.inject_gates(model, init_prob_open=0.6)
    twin = copy.deepcopy(model)
    twin.activation_checkpointing_enable()
    for one in (model, twin):
        torch.manual_seed(4)
        one.train()(**batch_for(one)).logits.square().sum().backward()
    assert (gates.log_alpha.grad != 0).any()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in twin.named_parameters():
        # The same operations again, summed in another order at most.
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(3,), (TOTAL, 1), ()])
def test_fixed_values_of_another_shape_are_refused(bert, shape):
    gates = gating.inject_gates(bert)
    with pytest.raises(ValueError, match="Expected 12 gate values"), gates.fixed_at(torch.ones(shape)):
        pass


def test_fixed_values_end_with_the_block_also_after_an_error(bert):
    gates = gating.inject_gates(bert)

    def fail():
        assert gates.num_open() == 0
        raise KeyError

    with pytest.raises(KeyError), gates.fixed_at(torch.zeros(TOTAL)):
        fail()
    assert gates.num_open() == TOTAL


def test_gates_go_on_blocks_that_kept_heads(bert):
    gating.prune_heads(bert, {0: [1], 1: range(NUM_HEADS)})
    gates = gating.inject_gates(bert)
    assert [len(values) for values in gates.by_block().values()] == [3, 4]
    batch = batch_for(bert)
    bert.train()(**batch).logits.sum().backward()


def test_state_with_gates_can_be_loaded_into_another_gated_model():
    first, second = build("bert"), build("bert")
    gates = gating.inject_gates(first)
    gating.inject_gates(second)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.linspace(-3, 3, TOTAL))
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.head_gates.values(), gates.values())
