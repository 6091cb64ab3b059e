"""Records of kept heads repeat the removal, and damaged ones are refused."""

import json

import pytest
import torch

import gating
from gating.compact.record_checks import check_record
from gating.loader.changes import set_attribute
from gating.loader.integrity import write_checksums
from gating.loader.record import FORMAT, plan_from_record
from gating.pruning.recording import describe_kept_units
from tests.support.tiny_models import NUM_HEADS, assert_same_state, batch_for, logits_of, state_of

SPEC = {
    "projections": [["query", "q"], ["key", "k"], ["value", "v"]],
    "output_projection": "^output.dense",
    "head_dim": "attention_head_size",
    "returns": "context",
}
NAMES = [f"encoder.layer.{i}.attention.self" for i in range(3)]


@pytest.fixture
def record():
    kept = ([0, 2], [], [0, 1, 2, 3])
    entry = {"spec": "BertSelfAttention", "num_heads": NUM_HEADS}
    blocks = {name: {**entry, "kept_heads": heads} for name, heads in zip(NAMES, kept, strict=True)}
    return {"format": FORMAT, "specs": {"BertSelfAttention": dict(SPEC)}, "blocks": blocks}


def test_a_record_is_plain_json_of_the_kept_heads(bert, record):
    gating.prune_heads(bert, {0: [1, 3], 1: range(NUM_HEADS)})
    written = describe_kept_units(bert)
    assert written == record
    assert json.loads(json.dumps(written)) == record
    assert bert.config.head_gating == record


def test_a_record_repeats_the_removal(bert, make_model, record):
    gating.prune_heads(bert, {0: [1, 3], 1: range(NUM_HEADS)})
    fresh = make_model("bert")
    for change in plan_from_record(fresh, record):
        set_attribute(*change)
    fresh.load_state_dict(state_of(bert))
    assert_same_state(fresh, state_of(bert))
    assert torch.equal(logits_of(fresh, batch_for(bert)), logits_of(bert, batch_for(bert)))


def test_the_record_of_a_whole_model_needs_no_edit(bert):
    assert plan_from_record(bert, describe_kept_units(bert)) == []


def test_a_record_fits_the_model_without_its_task_head(bert, record):
    for change in plan_from_record(bert.base_model, record):
        set_attribute(*change)
    assert [block.num_heads for block in gating.find_attention_blocks(bert)] == [2, 0, 4]


def set_kept(value):
    return lambda record: record["blocks"][NAMES[1]].update(kept_heads=value)


def read(model, record):
    check_record(record)
    return plan_from_record(model, record)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (set_kept([0, 4]), r"block 'encoder\.layer\.1\.attention\.self' has heads 0 to 3, but kept_heads is \[0, 4\]"),
        (set_kept([-1, 0]), r"kept_heads is \[-1, 0\]"),
        (set_kept([2, 1]), r"kept_heads is \[2, 1\]"),
        (set_kept([1, 1]), r"kept_heads is \[1, 1\]"),
        (set_kept("01"), r"block 'encoder\.layer\.1\.attention\.self' has no list of kept heads"),
        (set_kept(2), "has no list of kept heads"),
        (set_kept(None), "has no list of kept heads"),
        (set_kept([1.0]), "has no list of kept heads"),
        (set_kept([True]), "has no list of kept heads"),
        (lambda record: record["blocks"][NAMES[1]].update(spec="Bert"), r"block 'encoder\.layer\.1.* has no layout"),
        (lambda record: record["blocks"][NAMES[1]].pop("spec"), r"block 'encoder\.layer\.1.* has no layout"),
        (
            lambda record: record["blocks"].update({f"{NAMES[0]}.query": record["blocks"][NAMES[0]]}),
            "does not fit Bert",
        ),
        (lambda record: record.update(blocks={"h.0.attn": record["blocks"][NAMES[0]]}), "has none of its blocks"),
        (lambda record: record["specs"].update(BertSelfAttention={"ups": []}), "the spec of BertSelfAttention is not"),
        (
            lambda record: record["specs"]["BertSelfAttention"].update(forward="x"),
            "the spec of BertSelfAttention is not that of an attention class: it has forward='x'",
        ),
        (lambda record: record.update(specs=[]), "specs is not a table"),
        (lambda record: record["blocks"].update({NAMES[1]: [0]}), f"the entry of block '{NAMES[1]}' is not a table"),
        (lambda record: record["blocks"][NAMES[1]].update(num_heads=8), "num_heads|8 heads"),
        (lambda record: record.update(format=3), "its format is 3, and this version reads format 1"),
        (lambda record: record.pop("format"), "its format is None"),
        (lambda record: record["blocks"][NAMES[1]].update(num_heads=4.0), r"num_heads=4\.0, but the model has 4"),
        (
            lambda record: record["blocks"][NAMES[1]].update(kept_head=[]),
            "has 'kept_head', which this version does not",
        ),
        (lambda record: record.update(blocs={}), "it has 'blocs', which this version does not know"),
        (lambda record: record.update(blocks=[]), "not a table of blocks"),
        (lambda record: record.pop("blocks"), "not a table of blocks"),
    ],
)
def test_a_damaged_record_is_refused_and_the_damage_named(bert, record, damage, message):
    state = state_of(bert)
    damage(record)
    with pytest.raises(ValueError, match=rf"(?s)'head_gating' in config\.json.*({message})"):
        read(bert, record)
    assert_same_state(bert, state)


@pytest.mark.parametrize("record", [None, [], "format", 1])
def test_a_record_that_is_not_a_table_is_refused(bert, record):
    with pytest.raises(ValueError, match="not a table of blocks"):
        plan_from_record(bert, record)


@pytest.mark.parametrize(
    "change",
    [
        {"projections": "query"},
        {"projections": [["query", "q", "k"]]},
        {"projections": [["query", "z"]]},
        {"projections": [["__class__", "q"]]},
        {"projections": [["self._parameters", "q"]]},
        {"output_projection": "^^output"},
        {"output_projection": "../output"},
        {"output_projection": None},
        {"head_dim": "a b"},
        {"head_dim": 0},
        {"head_dim": True},
        {"returns": "anything"},
        {"returns": ["pair"]},
        {"is_cross_attention": 1},
        {"head_counts": ["__dict__"]},
        {"head_counts": "num_heads"},
        {"head_widths": [1]},
        {"per_head": [["bias", -1]]},
        {"per_head": [["bias", 10**9]]},
        {"per_head": [["bias", True]]},
        {"per_head_inputs": {"bias": 1}},
        {"forward": "exec"},
        {"more": 1},
    ],
)
def test_a_spec_with_an_invalid_field_is_refused(record, change):
    record["specs"] = {"BertSelfAttention": {**SPEC, **change}}
    with pytest.raises(ValueError, match=r"'head_gating' in config\.json.*the spec of BertSelfAttention"):
        check_record(record)


def test_load_compact_checks_specs(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["head_gating"]["specs"] = {"BertSelfAttention": {**SPEC, "head_dim": "__class__"}}
    path.write_text(json.dumps(config))
    write_checksums(folder)
    with pytest.raises(ValueError, match=r"'head_gating' in config\.json.*the spec of BertSelfAttention"):
        gating.load_compact(folder)
