"""The record is the difference from the dense model; it makes the compact one, and damaged ones are refused."""

import copy
import json

import pytest
import torch
import transformers
from torch import nn

import gating
from gating.families.layouts import AttentionSpec, read_spec
from gating.loader.modeling import apply_record
from gating.loader.record import build_dense, describe
from gating.loader.record_checks import check_fits
from tests.support.family_models import FAMILIES
from tests.support.tiny_models import NUM_HEADS, assert_same_state, batch_for, logits_of, state_of

FIRST, SECOND = (f"encoder.layer.{i}.attention.self" for i in range(2))
DOWN = "encoder.layer.2.output.dense"


@pytest.fixture
def pruned(bert):
    gating.prune_heads(bert, {0: [1, 3], 1: range(NUM_HEADS)})
    gating.prune_neurons(bert, {2: [0]}, group_size=16)
    return bert


@pytest.fixture
def record(pruned):
    return copy.deepcopy(pruned.config.head_gating)


def test_a_record_is_plain_json_of_the_differences(pruned, record):
    assert json.loads(json.dumps(record)) == describe(pruned) == record
    rows = {"attributes": {"out_features": 16}, "tensors": {"weight": [16, 32], "bias": [16]}}
    assert record["modules"] == {
        FIRST: {
            "attributes": {"num_attention_heads": 2, "all_head_size": 16},
            "counts": {"num_heads": 2, "n_heads": 2},
        },
        **{f"{FIRST}.{name}": rows for name in ("query", "key", "value")},
        "encoder.layer.0.attention.output.dense": {
            "attributes": {"in_features": 16},
            "tensors": {"weight": [32, 16]},
        },
        SECOND: {
            "attributes": {"num_attention_heads": 0, "all_head_size": 0},
            "without": ["query", "key", "value"],
            "parts": [["emptied", "context", "^output.dense"]],
        },
        "encoder.layer.1.attention.output.dense": {"attributes": {"in_features": 0}, "tensors": {"weight": [32, 0]}},
        "encoder.layer.2.intermediate.dense": {
            "attributes": {"out_features": 32},
            "tensors": {"weight": [32, 32], "bias": [32]},
        },
        DOWN: {"attributes": {"in_features": 32}, "tensors": {"weight": [32, 32]}},
    }
    assert record["units"] == {
        FIRST: {"num_heads_before": 4, "num_key_value_heads_before": 4, "head_ids": [0, 2], "head_slots": [0, 2]},
        SECOND: {"num_heads_before": 4, "num_key_value_heads_before": 4, "head_ids": [], "head_slots": []},
        DOWN: {"width_before": 48, "group_size": 16, "kept_groups": [1, 2]},
    }


def test_a_record_makes_the_compact_model(pruned, make_model, record):
    fresh = make_model("bert")
    assert apply_record(fresh, record) == record
    fresh.load_state_dict(state_of(pruned))
    assert_same_state(fresh, state_of(pruned))
    assert torch.equal(logits_of(fresh, batch_for(pruned)), logits_of(pruned, batch_for(pruned)))
    assert describe(fresh, build_dense(pruned)) == record


def test_settings_of_training_are_no_difference(bert):
    bert.train()
    bert.base_model.encoder.gradient_checkpointing = True
    assert describe(bert)["modules"] == {}


def test_a_record_fits_the_model_without_its_task_head(make_model, record):
    model = make_model("bert").base_model
    apply_record(model, record)
    assert [block.num_heads for block in gating.find_attention_blocks(model)] == [2, 0, 4]


def test_a_part_of_a_model_keeps_its_part_of_the_record():
    t5 = FAMILIES["t5"].build()
    gating.prune_heads(t5, {"encoder.block.0.layer.0.SelfAttention": [1], "decoder.block.1.layer.0.SelfAttention": [0]})
    encoder = transformers.T5EncoderModel(build_dense(t5).config)
    own = apply_record(encoder, t5.config.head_gating)
    assert own["modules"]
    assert all(name.startswith("encoder.") for name in (*own["modules"], *own["units"]))


def edited(entry, **changes):
    return lambda record: record["modules"][entry].update(changes)


def noted(entry, **changes):
    return lambda record: record["units"][entry].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(format=1),
        lambda record: record.update(format=True),
        lambda record: record.pop("modules"),
        lambda record: record.update(units=[]),
        lambda record: record.update(code="x"),
        edited(FIRST, code="x"),
        edited(FIRST, attributes={"__class__": 1}),
        edited(FIRST, attributes={"num_attention_heads": "2"}),
        edited(FIRST, attributes={"num_attention_heads": 8}),
        edited(FIRST, attributes={"num_attention_heads": -1}),
        edited(FIRST, attributes={"nothing": 1}),
        edited(FIRST, attributes=[1]),
        edited(f"{FIRST}.query", tensors={"weight": [64, 32]}),
        edited(f"{FIRST}.query", tensors={"weight": [16]}),
        edited(f"{FIRST}.query", tensors={"weight": [16, -1]}),
        edited(f"{FIRST}.query", tensors={"other": [16]}),
        edited(FIRST, added={"head_mask": [2]}),
        edited(FIRST, without=["forward"]),
        edited(FIRST, without=["__class__"]),
        edited(FIRST, parts=[["exec", "1"]]),
        edited(FIRST, parts="emptied"),
        edited(FIRST, config={"hidden_size": 10**6}),
        lambda record: record["modules"].update({"encoder.layer.7": {}}),
        noted(FIRST, head_ids="all"),
        noted(FIRST, num_heads_before=4.0),
        noted(DOWN, forward=[1]),
        lambda record: record.update(layers={"kept": {"encoder.layer": [10**6]}}),
        lambda record: record.update(canary=[1]),
    ],
)
def test_a_damaged_record_is_refused(change, record, pruned, make_model):
    fresh = make_model("bert")
    fresh.config.architectures = [type(fresh).__name__]
    state = state_of(fresh)
    change(record)
    with pytest.raises(gating.errors.InputError):
        check_fits(fresh, record)
    assert_same_state(fresh, state)


@pytest.mark.parametrize(
    "values",
    [
        {"head_dim": "__class__"},
        {"projections": [["query.__class__", "q"]]},
        {"output_projection": "a..b"},
        {"code": "x"},
        {"forward": "exec"},
        {"returns": "pair"},
    ],
)
def test_a_layout_with_other_fields_or_names_is_refused(values):
    with pytest.raises(ValueError, match="layout"):
        read_spec({"projections": [["query", "q"]], **values}, AttentionSpec)


class MyAttention(nn.Module):
    """A class of the user, with a row of its own."""


def test_a_layout_is_read_as_it_was_written():
    spec = AttentionSpec((("q", "q"), ("k", "k"), ("v", "v")), "out", per_head=(("bias", 0),))
    module = MyAttention()
    module.attention_spec = spec
    written = json.loads(json.dumps(describe(module, MyAttention())["units"][""]["attention_spec"]))
    assert read_spec(written, AttentionSpec) == spec
