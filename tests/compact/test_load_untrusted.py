"""Malicious folders with valid checksums are refused."""

import pytest
import torch

import gating
from gating.compact.load import load_compact
from tests.compact.test_load_damaged import edit_config, edit_weights

RECORD = "head_gating"


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 10**12},
        {"num_hidden_layers": 10**9},
        {"num_attention_heads": 10**9},
        {"num_attention_heads": 0},
        {"num_attention_heads": -4},
        {"hidden_size": -32},
        {"hidden_size": "32"},
        {"hidden_size": None},
        {"vocab_size": 0},
        {"hidden_act": "no such function"},
        {"dtype": "load"},
        {"id2label": ["a"]},
        {"id2label": {"0": "only one"}},
        {"model_type": "../../etc"},
        {"model_type": "vit"},
        {"model_type": 3},
        {"architectures": ["BertModel"]},
        {"architectures": ["RobertaForSequenceClassification"]},
        {"architectures": ["BertConfig"]},
        {"architectures": ["__loader__"]},
        {"architectures": [["x"]]},
        {"architectures": "Bert"},
        {"text_config": {"base_model_name_or_path": "me/model"}},
        {"transformers_weights": "adapter_model.bin"},
        {"quantization_config": {"quant_method": "gptq"}},
        {"attn_implementation": "me/kernel"},
        {"_attn_implementation_internal": "me/kernel"},
        {"text_config": [{"_attn_implementation": {"": "me/kernel"}}]},
        {"__class__": "x"},
    ],
)
def test_a_hostile_configuration_is_refused_in_one_line(folder, change):
    edit_config(folder, lambda config: config.update(change))
    with pytest.raises(gating.errors.InputError) as caught:
        load_compact(folder)
    assert "\n" not in str(caught.value)


def test_code_in_the_folder_is_not_run(folder, tmp_path):
    places = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    edit_config(folder, lambda config: config.update(auto_map=places))
    for path in (*folder.glob("*.py"), folder / "evil.py"):
        path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    load_compact(folder)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_beside_the_weights_is_not_opened(folder):
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    load_compact(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"Pickles are not read. In place of an export .* RUN/compact"):
        load_compact(folder)


def test_an_adapter_is_refused(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "me/model"}')
    with pytest.raises(ValueError, match="holds an adapter"):
        load_compact(folder)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool])
def test_integer_weights_are_refused(folder, dtype):
    name = "bert.encoder.layer.0.output.dense.weight"
    edit_weights(folder, lambda weights: weights.update({name: weights[name].to(dtype)}))
    with pytest.raises(ValueError, match="has other outputs"):
        load_compact(folder)


def test_heads_of_a_block_that_the_model_does_not_have_are_refused(folder):
    edit_config(folder, lambda config: config[RECORD]["modules"].update({"encoder.layer.7.attention.self": {}}))
    with pytest.raises(ValueError, match=r"modules \(encoder\.layer\.7\.attention\.self\)"):
        load_compact(folder)
