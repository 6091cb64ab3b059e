"""Folders of models that lost neurons: they load everywhere, and damaged records of neurons are refused."""

import copy
import json
import pickle
import shutil

import pytest
import torch
import transformers

import gating
from gating.loader.saving import compact_class
from gating.proof.probe import make_probe
from tests.compact.test_load_damaged import edit_config
from tests.support.family_models import FAMILIES, TEXT, Family
from tests.support.fresh_process import answers_of_fresh_process, outputs_of
from tests.support.tiny_models import batch_for, build, logits_of

FIRST, SECOND, THIRD = (f"encoder.layer.{layer}.output.dense" for layer in range(3))
BLOOM = Family(
    "BloomForCausalLM",
    "BloomConfig",
    {"vocab_size": 99, "hidden_size": 16, "n_head": 2, "n_layer": 2},
    implementations=("eager",),
)


@pytest.fixture(scope="module")
def pruned():
    """Return a model with an emptied, an uneven and a whole layer."""
    model = build("bert")
    gating.prune_neurons(model, {0: range(6), 1: [1, 3]}, group_size=8)
    gating.prune_heads(model, {0: [0, 1]})
    return model


@pytest.fixture(scope="module")
def original(pruned, tmp_path_factory):
    return gating.save_compact(pruned, tmp_path_factory.mktemp("neurons") / "compact")


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "compact")


@pytest.mark.processes
def test_folders_load_where_the_package_is_missing_and_are_saved_again(pruned, original, tmp_path):
    bloom = BLOOM.build()
    gating.prune_neurons(bloom, {0: range(8), 1: [3]}, group_size=8)
    gpt2 = FAMILIES["gpt2"].build()
    gating.prune_neurons(gpt2, {0: range(6), 1: [3]}, group_size=8)
    models = {"bert": (pruned, original), "bloom": (bloom, None), "gpt2": (gpt2, None)}
    jobs = {}
    for name, (model, folder) in models.items():
        jobs[name] = {
            "folder": str(folder or gating.save_compact(model, tmp_path / name)),
            "auto_class": "AutoModelForSequenceClassification" if name == "bert" else "AutoModelForCausalLM",
            "batch": make_probe(model),
            "save_again": str(tmp_path / f"{name}-again"),
        }
    for with_package in (True, False):
        for job in jobs.values():
            shutil.rmtree(job["save_again"], ignore_errors=True)
        for name, answer in answers_of_fresh_process(jobs, with_package=with_package).items():
            with torch.no_grad():
                expected = models[name][0](**jobs[name]["batch"])[0]
            for output in outputs_of(answer):
                torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-6)


def test_the_record_names_neurons_without_attention_that_is_unknown(forget, tmp_path):
    forget("BloomAttention")
    bloom = BLOOM.build()
    gating.prune_neurons(bloom, {0: [0]}, group_size=8)
    folder = gating.save_compact(bloom, tmp_path / "compact")
    record = json.loads((folder / "config.json").read_text())["head_gating"]
    assert record["units"] == {
        "h.0.mlp.dense_4h_to_h": {"width_before": 64, "group_size": 8, "kept_groups": [*range(1, 8)]}
    }


def test_a_model_that_lost_nearly_all_of_its_size_is_loaded(tmp_path):
    sizes = {**TEXT, "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 6, "intermediate_size": 2**16}
    model = transformers.BertModel(transformers.BertConfig(**sizes)).eval()
    gating.prune_neurons(model, dict.fromkeys(range(6), range(1, 2**10)))
    gating.prune_heads(model, {layer: [0] for layer in range(6)})
    folder = gating.save_compact(model, tmp_path / "compact")
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) < 600_000
    assert gating.find_feed_forward_blocks(gating.load_compact(folder))[0].group_ids == (0,)


def test_a_record_of_wide_blocks_does_not_allow_any_size(folder):
    def widen(config):
        config["head_gating"]["units"][SECOND]["width_before"] = 9_999_999
        config["intermediate_size"] = 2**40

    edit_config(folder, widen)
    with pytest.raises(ValueError, match="far larger"):
        gating.load_compact(folder)


def test_a_snapshot_of_the_hub_is_loaded(original, pruned, tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "1", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in original.iterdir():
        shutil.copy(path, blobs / path.name)
        (snapshot / path.name).symlink_to(blobs / path.name)
    loaded = gating.load_compact(snapshot)
    assert torch.equal(logits_of(loaded, batch_for(pruned)), logits_of(pruned, batch_for(pruned)))


def test_copies_and_pickles_of_a_loaded_model_are_equal(original, pruned):
    loaded, batch = gating.load_compact(original), batch_for(pruned)
    for twin in (loaded, copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        assert torch.equal(logits_of(twin, batch), logits_of(pruned, batch))
        assert gating.find_feed_forward_blocks(twin)[1].group_ids == (0, 2, 4, 5)


def test_a_loaded_model_loses_neurons_by_their_original_numbers_and_in_smaller_groups(original, pruned, tmp_path):
    loaded, expected = gating.load_compact(original), copy.deepcopy(pruned)
    gating.prune_neurons(loaded, {1: [4], 2: [0]}, group_size=4)
    gating.prune_neurons(expected, {1: [4], 2: [0]}, group_size=4)
    block = gating.find_feed_forward_blocks(loaded)[1]
    assert (block.group_size, block.group_ids) == (4, (0, 1, 5, 8, 9, 10, 11))
    again = gating.load_compact(gating.save_compact(loaded, tmp_path / "again"))
    batch = batch_for(pruned)
    assert torch.equal(logits_of(again, batch), logits_of(expected, batch))
    with pytest.raises(ValueError, match="group_size=8"):
        gating.prune_neurons(again, {2: [0]}, group_size=8)


def test_the_base_model_and_other_heads_load_from_the_same_folder(original, pruned):
    batch = batch_for(pruned)
    for cls in (transformers.BertModel, transformers.BertForTokenClassification):
        loaded = compact_class(cls).from_pretrained(original)
        with torch.no_grad():
            hidden = loaded.base_model(**batch)[0]
            torch.testing.assert_close(hidden, pruned.bert(**batch)[0], rtol=0, atol=0)


def test_a_container_of_a_pruned_model_is_saved_by_its_part(tmp_path):
    class Sentences(torch.nn.ModuleList):
        """A container such as SentenceTransformer."""

        def forward(self, **batch):
            """Return the outputs of the model in it."""
            return self[0](**batch)

    inner = build("distilbert")
    outer, batch = Sentences([inner]), batch_for(inner)
    block = gating.find_feed_forward_blocks(outer, group_size=16)[0]
    gating.prune_neurons(outer, {block.name: [0]}, group_size=16, probe=batch)
    inner.save_pretrained(tmp_path / "inner")
    loaded = gating.load_compact(tmp_path / "inner")
    assert not inner.training
    assert torch.equal(logits_of(loaded, batch), logits_of(inner, batch))
