"""A pruned model computes the outputs of the model with masked heads."""

import pytest
import transformers
from torch import nn
from transformers.modeling_utils import _CAN_RECORD_REGISTRY

import gating
from gating.errors import InputError
from gating.loader.saving import compact_class
from gating.pruning.plan import remove_recorded
from gating.pruning.prune_report import num_parameters
from tests.support.tiny_models import assert_same_state, batch_for, build, state_of

NAME = "encoder.layer.1.attention.self"


def test_one_call_removes_the_third_head_of_the_first_layer(bert):
    report = gating.prune_heads(bert, {0: [2]})
    assert list(report.kept_heads.values()) == [(0, 1, 3), (0, 1, 2, 3), (0, 1, 2, 3)]
    assert (report.num_heads_before, report.num_heads) == (12, 11)


def test_a_model_without_task_head_still_returns_attentions_and_hidden_states(bert):
    encoder = bert.base_model
    # As if this process had not built or loaded any compact model of the class.
    _CAN_RECORD_REGISTRY.pop(str(compact_class(type(encoder))), None)
    encoder.set_attn_implementation("eager")
    gating.prune_heads(encoder, {0: [2]})
    outputs = encoder(**batch_for(bert), output_attentions=True, output_hidden_states=True)
    assert [attention.shape[1] for attention in outputs.attentions] == [3, 4, 4]
    assert len(outputs.hidden_states) == 4


def test_parameters_are_counted_before_and_after(bert):
    before = num_parameters(bert)
    report = gating.prune_heads(bert, {0: [0], 2: [1, 3]})
    # Three rows blocks of 8 x 32 weights and 8 biases, and 8 columns of 32, for each of three heads.
    assert report.num_parameters_before == before
    assert report.num_parameters == num_parameters(bert) == before - 3 * (3 * (8 * 32 + 8) + 8 * 32)


def test_a_layer_has_a_number_or_a_name(bert, make_model):
    twin = make_model("bert")
    gating.prune_heads(bert, {1: [0, 3]})
    gating.prune_heads(twin, {NAME: [0, 3]})
    assert_same_state(twin, state_of(bert))


def test_heads_keep_their_original_numbers(bert, make_model):
    gating.prune_heads(bert, {1: [0]})
    report = gating.prune_heads(bert, {1: [1]})
    assert report.kept_heads[NAME] == (2, 3)
    at_once = make_model("bert")
    gating.prune_heads(at_once, {1: [0, 1]})
    assert_same_state(bert, state_of(at_once))


def test_pruning_a_removed_head_does_nothing(bert):
    gating.prune_heads(bert, {1: [0]})
    state = state_of(bert)
    report = gating.prune_heads(bert, {1: [0]})
    assert report.num_heads == report.num_heads_before == 11
    assert_same_state(bert, state)


def test_a_layer_number_with_two_blocks_is_refused():
    model = build("bert", num_hidden_layers=1, is_decoder=True, add_cross_attention=True)
    with pytest.raises(ValueError, match="several attention"):
        gating.prune_heads(model, {0: [1]})
    gating.prune_heads(model, {"encoder.layer.0.crossattention.self": [1]})
    assert [block.num_heads for block in gating.find_attention_blocks(model)] == [4, 3]


def test_shared_parameters_count_once():
    layer = nn.Linear(3, 4)
    assert num_parameters(nn.ModuleList([layer, layer])) == 16


class OfTwoArguments(transformers.BertModel):
    """A model that its configuration alone does not build, so that it has no record."""

    def __init__(self, config: transformers.BertConfig, name: str) -> None:
        super().__init__(config)
        self.name = name


@pytest.mark.parametrize(
    "change",
    [
        lambda model: gating.prune_heads(model, {0: [1]}),
        lambda model: gating.prune_neurons(model, {0: [0]}, group_size=8),
        lambda model: gating.finalize(model, gating.inject_gates(model), num_heads=3),
    ],
)
@pytest.mark.filterwarnings("ignore:.*nearly arbitrary")
def test_a_model_that_cannot_have_a_record_stays_whole(bert, change):
    model = OfTwoArguments(bert.config, "mine")
    state = state_of(model)
    with pytest.raises(TypeError, match="name"):
        change(model)
    if hasattr(model, "head_gates"):
        model.head_gates.remove()
    assert_same_state(model, state)
    assert not hasattr(model.config, "head_gating")


def test_heads_of_a_larger_model_are_not_removed_from_a_smaller_one(bert):
    state = state_of(bert)
    record = {"units": {gating.find_attention_blocks(bert)[0].name: {"head_ids": [0, 7]}}}
    with pytest.raises(InputError, match="other heads"):
        remove_recorded(bert, record)
    assert_same_state(bert, state)
