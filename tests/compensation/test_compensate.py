"""``gating.compensate``: what a removal lost comes back in closed form, and nothing else changes."""

import copy
import warnings

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import gating
from gating.compensation import compensate as module
from gating.compensation.parts import LayerWalk
from gating.errors import InputError
from gating.proof.outputs import forward_outputs
from gating.proof.probe import make_probe
from tests.support.family_models import ZOO
from tests.support.tiers import tiered
from tests.support.tiny_models import build, randomize, state_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*positions are few for layers"),
    pytest.mark.filterwarnings("ignore:Some modules get no gates"),
]
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 60}


def texts(number=6, rows=10, length=12, *, seed=0):
    """Batches with padding at the end of half of their rows."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 60, (number, rows, length), generator=generator)
    mask = torch.ones_like(tokens)
    mask[:, ::2, length // 2 :] = 0
    return [{"input_ids": one, "attention_mask": other} for one, other in zip(tokens, mask, strict=True)]


def smaller(dense, *, share=0.6, seed=0, **options):
    """A compact copy that has lost heads and neurons by chance."""
    compact = copy.deepcopy(dense)
    gates = gating.inject_gates(compact, units=["heads", "neurons"], group_size=8, **options)
    kept = torch.rand(gates.log_alpha.shape, generator=torch.Generator().manual_seed(seed)) < share
    gating.finalize(compact, gates, kept=kept)
    return compact


@pytest.fixture
def pair():
    dense = build("bert")
    return smaller(dense), dense


def test_a_neuron_that_others_can_replace_comes_back_whole():
    dense = build("bert")
    with torch.no_grad():
        for layer in dense.bert.encoder.layer:
            up = layer.intermediate.dense
            up.weight[8:16], up.bias[8:16] = up.weight[:8], up.bias[:8]
    compact = copy.deepcopy(dense)
    gating.prune_neurons(compact, {0: [1], 1: [1], 2: [1]}, group_size=8)
    report = gating.compensate(compact, dense, texts(20), ridge=1e-6)
    assert report.outputs[0] > 100 * report.outputs[1] < 1e-4
    assert all(block.after < 1e-4 for block in report.blocks)
    with torch.no_grad():
        for one, other in zip(forward_outputs(dense, texts()[0]), forward_outputs(compact, texts()[0]), strict=True):
            torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


def test_errors_fall_and_shapes_stay(pair, tmp_path):
    compact, dense = pair
    before, of_dense = state_of(compact), state_of(dense)
    report = gating.compensate(compact, dense, texts())
    after = state_of(compact)
    assert {name: one.shape for name, one in before.items()} == {name: one.shape for name, one in after.items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("output.dense" in name for name in changed)
    assert all(torch.equal(one, of_dense[name]) for name, one in state_of(dense).items())
    assert report.outputs[1] < 0.5 * report.outputs[0]
    assert [block.name for block in report.blocks][:2] == [
        "encoder.layer.0.attention.self",
        "encoder.layer.0.output.dense",
    ]
    assert all(block.after < block.before for block in report.blocks)
    assert report.num_positions == 6 * (5 * 6 + 5 * 12 - 12)  # the tenth row is held out, and padding is left out
    assert "0 positions" not in str(report)
    gating.save_compact(compact, tmp_path / "compact")
    loaded = gating.load_compact(tmp_path / "compact")
    assert all(torch.equal(one, after[name]) for name, one in state_of(loaded).items())


def test_the_same_for_any_size_of_the_batches_and_for_any_padding(pair):
    compact, dense = pair
    whole = texts(1, 60)[0]
    parts = [{name: one[start : start + 7] for name, one in whole.items()} for start in range(0, 60, 7)]
    other = {**whole, "input_ids": torch.where(whole["attention_mask"] == 0, 7, whole["input_ids"])}
    found = []
    for batches in ([whole], parts, [other]):
        model = copy.deepcopy(compact)
        gating.compensate(model, dense, batches)
        found.append(state_of(model))
    for state in found[1:]:
        for name, one in state.items():
            torch.testing.assert_close(one, found[0][name], rtol=1e-3, atol=1e-4, msg=name)


def test_batches_that_cannot_be_taken_apart_are_compared_whole(pair):
    def only_pairs(module, args, inputs):
        assert len(inputs["input_ids"]) % 2 == 0, "codebooks come in pairs"

    for model in pair:
        model.register_forward_pre_hook(only_pairs, with_kwargs=True)
    report = gating.compensate(*pair, texts())
    assert report.outputs[1] < report.outputs[0]
    assert all(block.after < block.before for block in report.blocks)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_whole_passes_give_the_same_as_layer_by_layer(name, monkeypatch):
    dense = build("bert") if name == "bert" else LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2)).eval()
    walked, whole = smaller(dense), smaller(dense)
    first = gating.compensate(walked, dense, texts())
    monkeypatch.setattr(LayerWalk, "of", lambda *_: None)
    second = gating.compensate(whole, dense, texts())
    assert [block.name for block in first.blocks] == [block.name for block in second.blocks]
    for key, one in state_of(whole).items():
        torch.testing.assert_close(one, state_of(walked)[key], rtol=1e-3, atol=1e-4, msg=key)


def test_an_emptied_block_gets_the_mean_where_it_has_a_bias():
    dense = build("bert")
    compact = copy.deepcopy(dense)
    gating.prune_heads(compact, {1: range(4)})
    bias = compact.bert.encoder.layer[1].attention.output.dense.bias.detach().clone()
    report = gating.compensate(compact, dense, texts())
    assert [block.is_changed for block in report.blocks] == [True]
    assert not torch.equal(bias, compact.bert.encoder.layer[1].attention.output.dense.bias)
    llama = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    compact = copy.deepcopy(llama)
    gating.prune_heads(compact, {1: range(4)})
    report = gating.compensate(compact, llama, texts())
    assert report.left_alone == {"layers.1.self_attn": "it has no input and no bias"}
    assert "Left alone: layers.1.self_attn" in str(report)


def test_padding_heads_stay_silent_and_other_blocks_as_they_are():
    dense = LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2)).eval()
    compact = copy.deepcopy(dense)
    gating.prune_heads(compact, {0: [0]})
    before = state_of(compact)
    gating.compensate(compact, dense, texts())
    weight = compact.model.layers[0].self_attn.o_proj.weight
    assert (weight == 0).all(dim=0).sum() == 8
    assert {name for name, one in state_of(compact).items() if not torch.equal(one, before[name])} == {
        "model.layers.0.self_attn.o_proj.weight"
    }


def test_layers_may_have_left_and_weights_may_be_of_half_precision():
    dense = LlamaForCausalLM(LlamaConfig(**SIZES)).eval().to(torch.bfloat16)
    randomize(dense)
    compact = copy.deepcopy(dense)
    gates = gating.inject_gates(compact, units=["heads", "neurons"], group_size=8)
    # All units of layer 1: it leaves.
    is_first = torch.tensor([".1." in name for name in gates.block_names])
    is_first = is_first.repeat_interleave(torch.tensor(gates.block_sizes))
    kept = ~is_first & (torch.rand(is_first.shape, generator=torch.Generator().manual_seed(0)) < 0.7)
    gating.finalize(compact, gates, kept=kept)
    assert len(compact.model.layers) == 2
    report = gating.compensate(compact, dense, texts())
    assert report.outputs[1] < report.outputs[0]
    assert {block.name.split(".")[1] for block in report.blocks} == {"0", "2"}
    assert {one.dtype for one in compact.parameters()} == {torch.bfloat16}


def test_weights_stay_where_the_error_would_grow(pair, monkeypatch):
    compact, dense = pair
    before = state_of(compact)
    monkeypatch.setattr(module.Ridge, "solve", lambda self, ridge: (torch.ones(1), 0.1, 0.2))
    report = gating.compensate(compact, dense, texts())
    assert not any(block.is_changed for block in report.blocks)
    assert all(torch.equal(one, before[name]) for name, one in state_of(compact).items())
    assert "(weights kept)" in str(report)


def test_an_error_or_a_worse_model_undoes_it(pair, monkeypatch):
    compact, dense = pair
    before = state_of(compact)
    dense_of_nan = copy.deepcopy(dense)
    with torch.no_grad():
        dense_of_nan.bert.encoder.layer[2].output.dense.bias[0] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        gating.compensate(compact, dense_of_nan, texts())
    assert all(torch.equal(one, before[name]) for name, one in state_of(compact).items())
    errors = iter([0.1, 0.2])
    monkeypatch.setattr(module._Solver, "_error_of_outputs", lambda self: next(errors))
    report = gating.compensate(compact, dense, texts())
    assert report.outputs == (0.1, 0.1)
    assert all(torch.equal(one, before[name]) for name, one in state_of(compact).items())


@pytest.mark.filterwarnings("default:.*positions are few")
def test_few_positions_are_said_once(pair):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        gating.compensate(*pair, texts(1, 4, 6))
    (message,) = [str(one.message) for one in found]
    assert "positions are few for layers of" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gating.compensate(*pair, texts(12))


def wrapped(model):
    return torch.nn.DataParallel(model)


REFUSED = {
    "a model that lost nothing": (lambda c, d: (d, d, texts()), "has lost no heads"),
    "another dense model": (
        lambda c, d: (c, BertModel(BertConfig(**{**SIZES, "num_attention_heads": 2})), texts()),
        "dense",
    ),
    "no batches": (lambda c, d: (c, d, []), "batches is empty"),
    "one example": (lambda c, d: (c, d, texts(1, 1)), "fewer than two"),
    "a wrapped model": (lambda c, d: (c, wrapped(d), texts()), "wrapped in DataParallel"),
    "no ridge": (lambda c, d: (c, d, texts(), -1), "ridge=-1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_solved_is_refused(name, pair):
    make, word = REFUSED[name]
    compact, dense, batches, *ridge = make(*pair)
    before = state_of(pair[0])
    with pytest.raises(InputError, match=word):
        gating.compensate(compact, dense, batches, **({"ridge": ridge[0]} if ridge else {}))
    assert all(torch.equal(one, before[name]) for name, one in state_of(pair[0]).items())


def test_a_model_with_gates_is_refused(pair):
    compact, dense = pair
    gating.inject_gates(dense)
    with pytest.raises(InputError, match="finalize"):
        gating.compensate(compact, dense, texts())


def varied(batch, seed):
    """A batch with other numbers; tokens change their places, where none stands for an image or a sound."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, one in batch.items():
        if one.is_floating_point():
            found[name] = one + 0.5 * torch.randn(one.shape, generator=generator)
        elif name in ("input_ids", "decoder_input_ids") and not any(x.is_floating_point() for x in batch.values()):
            found[name] = one.flatten()[torch.randperm(one.numel(), generator=generator)].view(one.shape)
        else:
            found[name] = one
    return found


@pytest.mark.parametrize("name", tiered(ZOO))
def test_no_family_is_further_from_its_dense_model(name):
    dense = ZOO[name].build()
    probe = ZOO[name].make_batch(dense) if name == "qwen2_audio" else make_probe(dense, batch_size=4)
    options = {} if ZOO[name].has_neurons else {"units": "heads"}
    compact = copy.deepcopy(dense)
    gates = gating.inject_gates(compact, **{"units": ["heads", "neurons"], "group_size": 8, **options})
    kept = torch.rand(gates.log_alpha.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    gating.finalize(compact, gates, kept=kept)
    before = state_of(compact)
    report = gating.compensate(compact, dense, [varied(probe, seed) for seed in range(4)])
    assert report.outputs[1] <= report.outputs[0]
    assert report.blocks
    after = state_of(compact)
    is_changed = any(not torch.equal(one, before[key]) for key, one in after.items())
    assert is_changed == any(block.is_changed for block in report.blocks)
    assert all(one.isfinite().all() for one in forward_outputs(compact, probe) if one.dim() < 3)
