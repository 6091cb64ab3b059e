"""Recipes give the compact model that was saved, from its base and kilobytes."""

import shutil

import pytest
import torch
import transformers

import gating
from gating.proof.outputs import forward_outputs
from gating.proof.probe import make_probe
from gating.structure.layers import count_layers
from tests.support.family_models import FAMILIES
from tests.support.fresh_process import answers_of_fresh_process, outputs_of
from tests.support.tiers import tiered
from tests.support.tiny_models import assert_same_state, batch_for, logits_of, state_of
from tests.support.versions import loading_options

MOST_BYTES = 20_000


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def finalized(model, *, units=("heads", "neurons"), seed=1, **options):
    """Remove units of a model by random gates, in place; return the factors that were folded."""
    gates = gating.inject_gates(model, units=list(units), group_size=8, **options)
    with torch.no_grad():
        gates.log_alpha.copy_(2 * torch.randn(len(gates.log_alpha), generator=torch.Generator().manual_seed(seed)))
    return gating.finalize(model, gates).folded


def based(model, folder):
    """Save a dense model as a base, and return a copy that is loaded from it."""
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, dtype=model.dtype).eval()


def loaded_as_saved(model, place, folded=None):
    """Save a recipe beside its base, and return the model that is loaded from it and equal to the bit."""
    folder = gating.save_recipe(model, place / "recipe", base=place / "base", folded=folded)
    assert size_of(folder) < MOST_BYTES
    loaded = gating.load_compact(folder)
    assert_same_state(loaded, state_of(model))
    return loaded


def assert_same_outputs(model, loaded):
    assert loaded.config.to_dict() == model.config.to_dict()
    probe = make_probe(model)
    for one, other in zip(forward_outputs(model, probe), forward_outputs(loaded, probe), strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def recipe(bert, tmp_path):
    """Return the folder of a recipe, and the model that it was saved of; its base is beside it, in ``base``."""
    model = based(bert, tmp_path / "base")
    folded = finalized(model)
    return gating.save_recipe(model, tmp_path / "recipe", base=tmp_path / "base", folded=folded), model


# Some linear attention depends on all heads.
@pytest.mark.filterwarnings("ignore:.*get no gates")
@pytest.mark.families
@pytest.mark.parametrize("name", tiered(FAMILIES, mark="slow"))
def test_a_recipe_gives_the_model_to_the_bit(name, tmp_path):
    model = based(FAMILIES[name].build(), tmp_path / "base")
    if name == "gpt_oss" and "experts_implementation" in loading_options(model):
        pytest.skip(f"torch {torch.__version__} has no grouped_mm for the CPU")
    folded = finalized(model, units=["heads", "neurons"] if FAMILIES[name].has_neurons else ["heads"])
    loaded = loaded_as_saved(model, tmp_path, folded)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert_same_outputs(model, loaded)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_recipe_keeps_the_type_of_the_weights(dtype, make_model, tmp_path):
    model = based(make_model("bert").to(dtype), tmp_path / "base")
    folded = finalized(model)
    assert loaded_as_saved(model, tmp_path, folded).dtype == dtype


def test_a_base_in_half_precision_is_trained_in_full(make_model, tmp_path):
    make_model("bert").to(torch.bfloat16).save_pretrained(tmp_path / "base")
    cls = transformers.BertForSequenceClassification
    model = cls.from_pretrained(tmp_path / "base", dtype=torch.float32).eval()
    folded = finalized(model)
    folder = gating.save_recipe(model, tmp_path / "recipe", base=tmp_path / "base", folded=folded)
    assert_same_state(gating.load_compact(folder), state_of(model))
    half = gating.load_compact(folder, dtype=torch.bfloat16)
    assert half.dtype == half.config.dtype == torch.bfloat16


@pytest.mark.processes
def test_a_fresh_process_loads_recipes(tmp_path):
    jobs, expected = {}, {}
    for name in ("bert", "llama", "t5"):
        model = based(FAMILIES[name].build(), tmp_path / name)
        folded = finalized(model)
        batch = make_probe(model)
        folder = gating.save_recipe(model, tmp_path / f"{name}-recipe", base=tmp_path / name, folded=folded)
        jobs[name] = {"folder": str(folder), "auto_class": "AutoModel", "batch": batch}
        with torch.no_grad():
            expected[name] = model(**batch)[0]
    for name, answer in answers_of_fresh_process(jobs, with_package=True).items():
        assert torch.equal(outputs_of(answer)[0], expected[name])


def test_factors_may_exceed_one(bert, tmp_path, monkeypatch):
    model = based(bert, tmp_path / "base")
    gates = gating.inject_gates(model)
    values = torch.linspace(0.5, 1.7, len(gates.log_alpha))
    monkeypatch.setattr("gating.pruning.finalize.decide_gate_values", lambda *_, **__: values)
    report = gating.finalize(model, gates)
    assert max(value for block in report.folded.values() for value in block) > 1.6
    loaded_as_saved(model, tmp_path, report.folded)


def test_units_pruned_by_number_need_no_factors(bert, tmp_path):
    model = based(bert, tmp_path / "base")
    gating.prune_heads(model, {0: [1], 1: range(4)})
    gating.prune_neurons(model, {2: [0]}, group_size=16)
    loaded = loaded_as_saved(model, tmp_path)
    assert [block.head_ids for block in gating.find_attention_blocks(loaded)] == [(0, 2, 3), (), (0, 1, 2, 3)]


def test_groups_of_query_heads_are_padded_as_before(tmp_path):
    model = based(FAMILIES["llama"].build(), tmp_path / "base")
    folded = finalized(model, units=["heads"], group_queries=False)
    assert "padded" in str(model.config.head_gating)
    loaded_as_saved(model, tmp_path, folded)


def test_neurons_that_all_stay_keep_their_factors(bert, tmp_path):
    model = based(bert, tmp_path / "base")
    gates = gating.inject_gates(model, units=["neurons"], group_size=12)
    with torch.no_grad():
        gates.log_alpha.fill_(0.5)
    folded = gating.finalize(model, gates).folded
    assert {len(values) for values in folded.values()} == {4}
    loaded_as_saved(model, tmp_path, folded)


@pytest.mark.parametrize("has_head", [False, True])
def test_a_new_head_is_in_the_recipe(has_head, tmp_path):
    dense = FAMILIES["bert"].build()
    (dense if has_head else dense.bert).save_pretrained(tmp_path / "base")
    # A head of two classes in the base is replaced by one of three.
    cls = transformers.BertForSequenceClassification
    model = cls.from_pretrained(tmp_path / "base", num_labels=3, ignore_mismatched_sizes=True).eval()
    torch.nn.init.normal_(model.classifier.weight)
    model.config.id2label = {0: "no", 1: "maybe", 2: "yes"}
    folded = finalized(model)
    loaded = loaded_as_saved(model, tmp_path, folded)
    assert loaded.config.id2label == model.config.id2label


def without_layers(model, emptied):
    """Close all gates of some layers and others at random, and remove the units; return the report."""
    gates = gating.inject_gates(model, units=["heads", "neurons"], group_size=8)
    with torch.no_grad():
        gates.log_alpha.copy_(2 + torch.randn(len(gates.log_alpha), generator=torch.Generator().manual_seed(0)))
        for block, values in zip(gates.blocks(), gates.log_alpha.split(gates.block_sizes), strict=True):
            values.fill_(-9.0) if block.layer_idx in emptied else values[:1].fill_(0.5)
    return gating.finalize(model, gates)


# Without biases, with types of layers, with biases, and in two lists.
@pytest.mark.filterwarnings("ignore:.*get no gates")
@pytest.mark.parametrize("name", tiered(["llama", "gemma3", "gpt2", "whisper"]))
def test_layers_that_a_search_has_emptied_leave_the_base(name, tmp_path):
    model = based(FAMILIES[name].build(), tmp_path / "base")
    before = count_layers(model)
    report = without_layers(model, {1})
    assert all(1 not in kept for kept in report.kept_layers.values())
    assert count_layers(model) < before
    assert_same_outputs(model, loaded_as_saved(model, tmp_path, report.folded))


def test_a_search_after_layers_were_pruned_by_number(bert, tmp_path):
    model = based(bert, tmp_path / "base")
    gating.prune_layers(model, [1])
    folded = finalized(model)
    assert "encoder.layer.2.attention.self" in folded
    loaded_as_saved(model, tmp_path, folded)


def test_layers_that_were_pruned_by_number_leave_the_base(bert, tmp_path):
    model = based(bert, tmp_path / "base")
    gating.prune_layers(model, [1])
    gating.prune_heads(model, {1: [0]})
    loaded = gating.load_compact(gating.save_recipe(model, tmp_path / "recipe", base=tmp_path / "base"))
    assert loaded.config.to_dict() == model.config.to_dict()
    batch = batch_for(model)
    torch.testing.assert_close(logits_of(loaded, batch), logits_of(model, batch))


def test_a_loaded_model_is_saved_whole(recipe, tmp_path):
    folder, model = recipe
    again = gating.load_compact(gating.save_compact(gating.load_compact(folder), tmp_path / "whole"))
    batch = batch_for(model)
    assert torch.equal(logits_of(again, batch), logits_of(model, batch))


def test_a_loaded_model_loses_more_units(recipe, tmp_path):
    folder, _ = recipe
    loaded = gating.load_compact(folder)
    block = next(block for block in gating.find_attention_blocks(loaded) if block.num_heads)
    gating.prune_heads(loaded, {block.name: [block.head_ids[0]]})
    # Its factors are those of the units that stay.
    gating.save_compact(loaded, tmp_path / "less")


def test_a_base_may_be_named_anew(recipe, tmp_path):
    folder, model = recipe
    shutil.move(tmp_path / "base", tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="base does not exist"):
        gating.load_compact(folder)
    assert_same_state(gating.load_compact(folder, base=tmp_path / "moved"), state_of(model))


def test_a_base_may_be_cut_into_other_files(recipe, tmp_path):
    folder, model = recipe
    dense = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    # Otherwise transformers 5.0 saves models that were loaded with names of its first versions.
    dense.save_pretrained(tmp_path / "base", max_shard_size="20KB", save_original_format=False)
    assert_same_state(gating.load_compact(folder), state_of(model))


def test_saving_leaves_the_model_and_its_base_alone(bert, tmp_path):
    model = based(bert, tmp_path / "base")
    folded = finalized(model)
    state, described = state_of(model), model.config.to_dict()
    files = {path: path.read_bytes() for path in (tmp_path / "base").iterdir()}
    folder = gating.save_recipe(model, tmp_path / "recipe", base=tmp_path / "base", folded=folded)
    assert gating.save_recipe(model, folder, base=tmp_path / "base", folded=folded, overwrite=True) == folder
    assert_same_state(model, state)
    assert model.config.to_dict() == described
    assert {path: path.read_bytes() for path in (tmp_path / "base").iterdir()} == files
