"""Compact classes build pruned models from their configuration."""

import ast
import copy
import sys

import pytest
import torch
import transformers
from torch import nn

import gating
from gating.loader import saving
from gating.loader.composing import compose
from gating.loader.modeling import MIXINS, PARTS
from gating.loader.saving import become_compact, compact_class
from tests.support.family_models import FAMILIES as FAMILIES_OF_MODELS
from tests.support.fresh_process import outputs_of
from tests.support.tiny_models import (
    FAMILIES,
    NUM_HEADS,
    assert_same_state,
    batch_for,
    build_bert_base,
    logits_of,
    state_of,
)

SAVED_NAMES = [*FAMILIES, "whole-or-emptied", "all-emptied", "whole"]


def test_the_compact_class_is_a_subclass_of_the_same_name(model):
    base = type(model)
    cls = compact_class(base)
    assert issubclass(cls, base)
    assert cls.__name__ == base.__name__
    assert cls is compact_class(base) is compact_class(cls)


def test_a_pruned_model_has_the_compact_class_and_a_record(model):
    base = type(model)
    gating.prune_heads(model, {0: [1]})
    assert type(model) is compact_class(base)
    block = gating.find_attention_blocks(model)[0]
    notes = model.config.head_gating["units"][block.name]
    assert (notes["num_heads_before"], notes["head_ids"]) == (NUM_HEADS, [0, 2, 3])


def test_building_from_the_configuration_repeats_the_removal(model):
    gating.prune_heads(model, {0: [1], 1: range(NUM_HEADS)})
    fresh = type(model)(model.config)
    assert {k: v.shape for k, v in fresh.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(logits_of(fresh.eval(), batch_for(model)), logits_of(model, batch_for(model)))


def test_building_works_without_memory(bert):
    gating.prune_heads(bert, {0: [1], 1: range(NUM_HEADS)})
    with torch.device("meta"):
        fresh = type(bert)(bert.config)
    assert all(parameter.is_meta for parameter in fresh.parameters())


def test_a_configuration_without_a_record_builds_a_whole_model(bert):
    config = copy.deepcopy(bert.config)
    fresh = compact_class(type(bert))(config)
    assert {k: v.shape for k, v in fresh.state_dict().items()} == {k: v.shape for k, v in bert.state_dict().items()}


def test_a_pruned_model_can_be_copied(bert):
    gating.prune_heads(bert, {0: [1], 1: range(NUM_HEADS)})
    twin = copy.deepcopy(bert)
    state = state_of(bert)
    gating.prune_heads(twin, {0: [0]})
    assert_same_state(bert, state)
    assert bert.config.head_gating != twin.config.head_gating
    assert [block.num_heads for block in gating.find_attention_blocks(twin)] == [2, 0, 4]


def test_a_module_without_configuration_is_left_alone():
    module = nn.Linear(2, 2)
    become_compact(module)
    assert type(module) is nn.Linear


def test_becoming_compact_changes_no_weight(bert):
    state = state_of(bert)
    become_compact(bert)
    become_compact(bert)
    assert_same_state(bert, state)


def test_the_module_offers_every_transformers_model_by_name():
    assert saving.BertModel is compact_class(transformers.BertModel)
    with pytest.raises(AttributeError, match="no attribute 'BertConfig'"):
        _ = saving.BertConfig
    with pytest.raises(AttributeError):
        _ = saving.nothing_of_the_sort


def test_every_auto_class_of_the_configuration_is_mapped(bert):
    gating.prune_heads(bert, {0: [1]})
    auto_map = bert.config.auto_map
    assert auto_map["AutoModelForSequenceClassification"] == "modeling_compact.BertForSequenceClassification"
    assert auto_map["AutoModel"] == "modeling_compact.BertModel"
    assert auto_map["AutoModelForTokenClassification"] == "modeling_compact.BertForTokenClassification"
    assert all(name.startswith("AutoModel") for name in auto_map)


# Calls that a module may make on import: they return a value and change nothing.
HARMLESS = {"dataclass", "no_grad"}


def test_the_file_that_travels_defines_and_does_nothing_else(saved):
    for name in ("bert", "distilbert"):
        (path,) = saved[name].folder.glob("*.py")
        assert path.name == "modeling_compact.py"
        for node in ast.parse(path.read_text()).body:
            is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            assert is_docstring or isinstance(node, DEFINITIONS), node.lineno
            assert calls_at_import(node) <= HARMLESS, node.lineno
            assert getattr(node, "level", 0) == 0, node.lineno
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.partition(".")[0] for name in names} <= {*sys.stdlib_module_names, "torch", "transformers"}


def test_the_composed_file_of_all_parts_is_one_namespace():
    text = compose({*PARTS, *(cls.__name__ for cls in MIXINS)})
    defined = [node.name for node in ast.parse(text).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert sorted(defined) == sorted(set(defined))
    assert len(text.splitlines()) <= 900


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_little_code_travels(name, tmp_path):
    model = FAMILIES_OF_MODELS[name].build()
    gating.prune_heads(model, {0: [0], 1: range(NUM_HEADS)} if name == "bert" else {0: [0, 1], 1: range(8)})
    gating.prune_neurons(model, {0: [0], 1: [1, 2]}, group_size=8)
    (path,) = gating.save_compact(model, tmp_path / "compact", stock=False).glob("*.py")
    assert len(path.read_text().splitlines()) <= 300


DEFINITIONS = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.ClassDef)


def calls_at_import(node: ast.AST) -> set[str]:
    """Return the names of the functions that a statement at module level calls."""
    if isinstance(node, (ast.FunctionDef, ast.Lambda)):
        inside = [*node.args.defaults, *filter(None, node.args.kw_defaults), *getattr(node, "decorator_list", [])]
    else:
        inside = list(ast.iter_child_nodes(node))
    own = {getattr(node.func, "attr", getattr(node.func, "id", "?"))} if isinstance(node, ast.Call) else set()
    return own.union(*map(calls_at_import, inside))


# Fresh processes: two for all of these tests, see the fixture fresh_answers.


@pytest.mark.processes
@pytest.mark.parametrize("name", SAVED_NAMES)
@pytest.mark.parametrize("kind", ["remote", "local"])
def test_a_fresh_process_loads_equal_models(saved, fresh_answers, name, kind):
    """Remote code does so where the package is missing, and load_compact where it is installed."""
    answer = fresh_answers[kind][name]
    first, again = outputs_of(answer)
    # The same operations on the same bits, in another process on the same machine.
    torch.testing.assert_close(first, saved[name].logits, rtol=0, atol=1e-6)
    assert torch.equal(again, first), "saving the loaded model and loading it again changed it"
    assert not answer["training"]
    assert kind == "remote" or answer["modules"] == [], "load_compact ran code of the folder"


@pytest.mark.processes
def test_remote_code_loads_the_base_model_too(saved, fresh_answers):
    one = saved["bert"]
    with torch.no_grad():
        expected = one.model.bert(**one.batch).last_hidden_state
    torch.testing.assert_close(outputs_of(fresh_answers["remote"]["base model"])[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["remote", "local"])
def test_bert_base_loads_equal_in_a_fresh_process(bert_base, fresh_answers, kind):
    found = outputs_of(fresh_answers[kind]["bert-base"])[0]
    torch.testing.assert_close(found, bert_base.logits, rtol=0, atol=1e-6)


# BERT-base: 12 layers of 12 heads of 64.


@pytest.fixture(scope="module")
def dense_base():
    return build_bert_base()


@pytest.mark.parametrize("seed", [0, 1])
def test_bert_base_compact_equals_masked(dense_base, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(12, 12, generator=generator) < torch.rand(12, 1, generator=generator)).float()
    mask[2 + seed] = 0
    mask[9] = 0
    mask[6] = 1
    model = copy.deepcopy(dense_base)
    batch = batch_for(model)
    gates = gating.inject_gates(model)
    with gates.fixed_at(mask.flatten()):
        masked = logits_of(model, batch)
    gates.remove()
    gating.prune_heads(model, {layer: (mask[layer] == 0).nonzero().flatten().tolist() for layer in range(12)})
    assert (masked - logits_of(dense_base, batch)).abs().max() > 1e-3, "the pattern makes no difference"
    assert (masked - logits_of(model, batch)).abs().max() <= 1e-5
    for layer, kept in enumerate(mask.sum(1).int().tolist()):
        attention = model.bert.encoder.layer[layer].attention
        if kept:
            assert all(
                getattr(attention.self, name).weight.shape == (64 * kept, 768) for name in ("query", "key", "value")
            )
        assert attention.output.dense.weight.shape == (768, 64 * kept)
