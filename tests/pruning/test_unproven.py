"""Blocks for which the proof of a removal says nothing: they are named."""

import copy

import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedConfig, PreTrainedModel

import gating
from tests.support.family_models import ZOO
from tests.support.tiny_models import build

pytestmark = pytest.mark.filterwarnings("ignore:.*nearly arbitrary:UserWarning")


class TwoTowersConfig(PreTrainedConfig):
    model_type = "two_towers_of_a_test"
    num_attention_heads = 4
    vocab_size = 30


class TwoTowers(PreTrainedModel):
    """Two encoders, of which the second runs only where it has an input; its batch cannot be guessed."""

    config_class = TwoTowersConfig
    main_input_name = "input_ids"

    def __init__(self, config):
        super().__init__(config)
        sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 32}
        self.text, self.other = (BertModel(BertConfig(vocab_size=30, **sizes)) for _ in range(2))
        self.aside = BertModel(BertConfig(vocab_size=30, **sizes))
        self.post_init()

    def forward(self, input_ids, other_ids=None):
        self.aside(input_ids)
        output = self.text(input_ids).pooler_output
        return (output if other_ids is None else output + self.other(other_ids).pooler_output,)


TEXTS = {"input_ids": torch.tensor([[1, 2, 3, 4]])}
BOTH = {**TEXTS, "other_ids": torch.tensor([[5, 6, 7]])}
ASIDE = {f"aside.encoder.layer.{layer}.attention.self" for layer in range(2)}
OTHER = {f"other.encoder.layer.{layer}.attention.self" for layer in range(2)}


def two_towers():
    torch.manual_seed(0)
    return TwoTowers(TwoTowersConfig()).eval()


def half_of(gates):
    return torch.arange(gates.log_alpha.numel()) % 2 == 0


@pytest.mark.parametrize(("probe", "unproven"), [(TEXTS, ASIDE | OTHER), (BOTH, ASIDE), (None, ASIDE | OTHER)])
def test_blocks_that_no_output_depends_on_are_named(probe, unproven):
    model = two_towers()
    gates = gating.inject_gates(model)
    report = gating.finalize(model, gates, kept=half_of(gates), probe=probe)
    assert set(report.unproven) == unproven


def test_only_blocks_that_lose_units_are_named():
    model = two_towers()
    gates = gating.inject_gates(model)
    kept = half_of(gates)
    lost = "other.encoder.layer.1.attention.self"
    for name, part in zip(gates.block_names, kept.split(gates.block_sizes), strict=True):
        part |= name != lost
    assert gating.finalize(model, gates, kept=kept, probe=TEXTS).unproven == (lost,)


# The model's own batch has images: it is tried where a batch of texts says nothing about their tower.
@pytest.mark.parametrize("units", ["heads", "neurons"])
def test_a_batch_of_texts_is_completed_by_one_with_images(units):
    model = ZOO["llava"].build()
    gates = gating.inject_gates(model, units=units, group_size=16)
    report = gating.finalize(model, gates, kept=half_of(gates), probe={"input_ids": torch.tensor([[5, 6, 7, 8]])})
    assert report.unproven == ()


def test_every_block_of_a_plain_model_is_proven():
    model = build("bert")
    gates = gating.inject_gates(model, units=["heads", "neurons"], group_size=16)
    kept = half_of(gates)
    kept[:4] = False
    kept[-3:] = False
    assert gating.finalize(model, gates, kept=kept).unproven == ()


def test_names_are_those_of_the_original_model():
    model = BertModel(BertConfig(hidden_size=16, num_attention_heads=4, num_hidden_layers=3, vocab_size=30))
    gating.prune_layers(model, [0])
    report = gating.prune_heads(model, {"encoder.layer.1.attention.self": [0]})
    assert report.unproven == ("encoder.layer.2.attention.self",)
    assert report.kept_heads[report.unproven[0]] == (1, 2, 3)


def test_what_is_removed_by_hand_is_named():
    model = two_towers()
    requests = {"other.encoder.layer.0.attention.self": [0], "text.encoder.layer.1.attention.self": [1, 2]}
    assert set(gating.prune_heads(copy.deepcopy(model), requests).unproven) == set(requests)
    assert gating.prune_heads(copy.deepcopy(model), requests, probe=BOTH).unproven == ()
    report = gating.prune_heads(model, requests, probe=TEXTS)
    assert report.unproven == ("other.encoder.layer.0.attention.self",)
    groups = {"other.encoder.layer.1.output.dense": [0], "text.encoder.layer.1.output.dense": [1]}
    model = two_towers()
    assert gating.prune_neurons(copy.deepcopy(model), groups, group_size=8, probe=BOTH).unproven == ()
    report = gating.prune_neurons(model, groups, group_size=8)
    assert report.unproven == ("other.encoder.layer.1.output.dense",)


def test_the_proof_leaves_a_ranking_as_it_is():
    model, objective = build("bert"), gating.IterativePruning(gating.Importance(), num_heads=6)
    gates = gating.inject_gates(model)
    objective.attach(gates)
    model(torch.tensor([[1, 2, 3]])).logits.square().sum().backward()
    importance, gradients = objective.ranking.importance.clone(), [one.grad for one in model.parameters()]
    assert importance.any()
    gating.finalize(model, gates, objective)
    assert torch.equal(importance, objective.ranking.importance)
    assert any(gradient is not None for gradient in gradients)
