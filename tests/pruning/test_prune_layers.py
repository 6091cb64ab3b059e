"""Removal of given layers: what is left is the model that skips them, and loads with plain transformers."""

import argparse
import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    Qwen2Config,
    Qwen3MoeConfig,
    T5Config,
    T5ForConditionalGeneration,
)

import gating
from gating.commands.inspect import run
from gating.compact.stock import read_original
from gating.errors import InputError
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from gating.pruning.layers import build_original, changed, settings_without_layers
from gating.structure.layers import find_layer_lists
from tests.support.family_models import FAMILIES
from tests.support.fresh_process import auto_class_of, difference_elsewhere, save_for_elsewhere
from tests.support.masked_models import generate_all, ways_to_generate
from tests.support.tiers import REPRESENTATIVES, first_of, tiered
from tests.support.versions import skip_older_fault

SIZES = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 32, "vocab_size": 50}
# Layers that depend on their numbers: of shifted windows, of periods, of scales; of one list that all layers share.
REFUSED = {"swin", "minimax", "minicpm3", "jamba", "recurrent_gemma", "albert-1group"}


def bert(num_hidden_layers: int = 4) -> BertModel:
    return BertModel(BertConfig(num_hidden_layers=num_hidden_layers, **SIZES)).eval()


def test_the_first_layers_are_the_model_of_as_many_layers(tmp_path: Path) -> None:
    model = bert()
    first = bert(2)
    first.load_state_dict({name: value for name, value in model.state_dict().items() if name in first.state_dict()})
    probe = make_probe(model)
    report = gating.prune_layers(model, [2, -1])
    assert max_relative_difference(forward_outputs(first, probe), forward_outputs(model, probe)) == 0.0
    assert (report.kept_layers, report.num_heads, report.num_heads_before) == ({"encoder.layer": (0, 1)}, 8, 16)
    assert report.kept_heads["encoder.layer.3.attention.self"] == ()
    assert report.num_parameters == sum(parameter.numel() for parameter in first.parameters())
    save_for_elsewhere(model, tmp_path / "stock", probe, stock=True)
    assert difference_elsewhere(tmp_path / "stock", "AutoModel") == 0.0
    assert "Layers of encoder.layer that stay: 0, 1." in (tmp_path / "stock" / "README.md").read_text()


def test_an_encoder_stays_as_deep_as_the_cache_of_generation() -> None:
    model = T5ForConditionalGeneration(
        T5Config(d_model=16, d_kv=4, d_ff=32, num_layers=3, num_heads=4, vocab_size=50, decoder_start_token_id=0)
    ).eval()
    with pytest.raises(ValueError, match="cache of 2 layers"):
        gating.prune_layers(model, {"encoder": [1]})
    gating.prune_layers(model, {"decoder": [1]})
    gating.prune_layers(model, {"encoder": [1]})
    assert model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False).shape == (1, 4)


def test_a_stock_folder_tells_of_the_original(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = bert()
    gating.prune_layers(model, [1])
    gating.save_compact(model, tmp_path / "stock")
    loaded = gating.load_compact(tmp_path / "stock")
    original = read_original(loaded, tmp_path / "stock")
    assert original is not None
    assert build_original(loaded, original).config.num_hidden_layers == 4
    run(argparse.Namespace(folder=str(tmp_path / "stock"), revision=None))
    printed = capsys.readouterr().out
    assert "Layers of encoder.layer that stay: 0, 2, 3." in printed
    assert "12 of 16 heads" in printed


@pytest.mark.parametrize(
    "name", first_of(sorted(set(FAMILIES) - REFUSED - {"albert", "longcat_flash", "nemotron_h", "bart"}), every=20)
)
def test_each_family_generates_and_loads_without_a_layer(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    model = family.build()
    probe, ways = make_probe(model), ways_to_generate(family)
    sizes = {one.name: len(one.layers) for one in find_layer_lists(model)}
    try:
        gating.prune_layers(model, {name: [size - 2] for name, size in sizes.items() if size > 1})
    except InputError as error:
        skip_older_fault(error)
    assert {one.name: len(one.layers) for one in find_layer_lists(model)} == {
        name: max(1, size - 1) for name, size in sizes.items()
    }
    tokens = generate_all(model, probe, ways)
    assert tokens.get("greedy") == tokens.get("no cache") == tokens.get("static", tokens.get("greedy"))
    save_for_elsewhere(model, tmp_path / "stock", probe, stock=True)
    assert difference_elsewhere(tmp_path / "stock", auto_class_of(model), is_fresh=name in REPRESENTATIVES) == 0.0


@pytest.mark.parametrize("name", tiered(sorted(REFUSED)))
def test_a_refused_removal_changes_nothing(name: str) -> None:
    model = FAMILIES[name].build()
    probe, config = make_probe(model), copy.deepcopy(model.config.to_dict())
    outputs, shape = forward_outputs(model, probe), str(model)
    (layers, *_) = [one for one in find_layer_lists(model) if len(one.layers) > 1]
    with pytest.raises(ValueError, match="Nothing was changed"):
        gating.prune_layers(model, {layers.name: [len(layers.layers) - 2]})
    assert max_relative_difference(outputs, forward_outputs(model, probe)) == 0.0
    assert (model.config.to_dict(), str(model)) == (config, shape)


def test_heads_of_timestamps_keep_their_layers() -> None:
    model = FAMILIES["whisper"].build()
    model.generation_config.alignment_heads = [[0, 1], [1, 2], [2, 3]]
    gating.prune_layers(model, {"encoder": [0]})
    assert model.generation_config.alignment_heads == [[0, 1], [1, 2], [2, 3]]
    gating.prune_layers(model, {"decoder": [1]})
    assert model.generation_config.alignment_heads == [[0, 1], [1, 3]]


def test_layers_are_numbered_as_they_are_now() -> None:
    model = bert()
    gating.prune_layers(model, [0])
    assert gating.prune_layers(model, torch.tensor([0])).kept_layers == {"encoder.layer": (2, 3)}


def test_heads_leave_after_layers_and_before_them() -> None:
    model = bert()
    gating.prune_heads(model, {0: [1], 3: [0, 2]})
    gating.prune_layers(model, [1])
    report = gating.prune_heads(model, {2: [3]})
    assert report.kept_heads == {
        "encoder.layer.0.attention.self": (0, 2, 3),
        "encoder.layer.1.attention.self": (),
        "encoder.layer.2.attention.self": (0, 1, 2, 3),
        "encoder.layer.3.attention.self": (1,),
    }


def test_settings_keep_the_entries_of_the_layers_that_stay() -> None:
    sliding = Qwen2Config(num_hidden_layers=4, use_sliding_window=True, max_window_layers=2, layer_types=None, **SIZES)
    found = next(settings_without_layers(sliding, [0, 3], num_layers=4))
    assert found == {
        "num_hidden_layers": 2,
        "max_window_layers": 1,
        "layer_types": ["full_attention", "sliding_attention"],
    }
    experts = Qwen3MoeConfig(num_hidden_layers=4, mlp_only_layers=[0, 2], **SIZES)
    assert next(settings_without_layers(experts, [1, 2, 3], num_layers=4))["mlp_only_layers"] == [1]
    tokens = LlamaConfig(num_hidden_layers=4, eos_token_id=[1, 2, 3, 4], **SIZES)
    assert next(settings_without_layers(tokens, [0], num_layers=4)) == {"num_hidden_layers": 1}
    assert changed(sliding, found).layer_types == found["layer_types"]


class Classifier(nn.Module):
    """A module of one's own around a model of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = FAMILIES["llama"].build(), nn.Linear(99, 2)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(input_ids).logits)


def test_layers_leave_models_inside_of_other_modules() -> None:
    model, probe = Classifier().eval(), {"input_ids": torch.randint(0, 99, (2, 6))}
    assert gating.prune_layers(model, [0], probe=probe).kept_layers == {"encoder.model.layers": (1, 2)}
    report = gating.prune_layers(model, [0], probe=probe)
    assert report.kept_layers == {"encoder.model.layers": (2,)}
    assert [name for name, heads in report.kept_heads.items() if heads] == ["encoder.model.layers.2.self_attn"]
    assert model.encoder.config.num_hidden_layers == 1
