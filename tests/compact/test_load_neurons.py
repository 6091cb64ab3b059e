"""Folders of models that lost neurons: they load everywhere, and damaged records of neurons are refused."""

import copy
import json
import shutil

import pytest
import torch
import transformers

import gating
from tests.compact.test_load_damaged import edit_config
from tests.support.family_models import TEXT, Family
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
