"""The size of a model is bounded before its memory is allocated."""

import json

import pytest
import torch
import transformers
from torch import nn

import gating
from gating.compact.files import read_config
from gating.compact.limits import checked_folder
from gating.loader.saving import compact_class, write_checksums


def build(folder, *, verify=True, **changes):
    """Build the model of a folder, without memory, from a configuration that was changed."""
    config = read_config(folder)
    config.update(changes)
    (folder / "config.json").write_text(json.dumps(config))
    if verify:
        write_checksums(folder)
    with checked_folder(folder, verify=verify), torch.device("meta"):
        return compact_class(transformers.BertForSequenceClassification)(
            transformers.AutoConfig.from_pretrained(folder)
        )


def test_a_whole_folder_fits(folder):
    assert [block.num_heads for block in gating.find_attention_blocks(build(folder))] == [3, 0, 4]


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 10**6},
        {"hidden_size": 10**12},
        {"vocab_size": 10**10},
        {"max_position_embeddings": 10**12},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": -(10**9)},
        {"text_config": {"n_layer": 10**9}},
        {"num_labels": 10**9},
        {"anything": 10**20},
        {"intermediate_size": 49},
        {"num_hidden_layers": 4},
    ],
)
def test_a_model_of_another_size_is_refused_before_there_is_memory_for_it(folder, changes):
    with pytest.raises(gating.errors.InputError):
        build(folder, **changes)


def test_many_layers_are_not_built(folder):
    built = []
    handle = nn.modules.module.register_module_module_registration_hook(lambda *_: built.append(1))
    try:
        with pytest.raises(ValueError, match="far larger"):
            build(folder, num_hidden_layers=290)
    finally:
        handle.remove()
    assert len(built) < 1500


def test_sizes_are_bounded_only_while_loading(folder):
    with pytest.raises(ValueError, match="far larger"):
        build(folder, hidden_size=10**6)
    with torch.device("meta"):
        assert nn.Linear(10**6, 10**6).weight.numel() == 10**12
