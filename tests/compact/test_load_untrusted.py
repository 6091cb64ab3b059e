"""Malicious folders with valid checksums are refused."""

import pytest
import torch

from gating.compact.load import load_compact
from tests.compact.test_load_damaged import edit_config, edit_weights

RECORD = "head_gating"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 10**12}, "far larger than its weights"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 cannot be"),
        ({"num_attention_heads": 10**9}, "compact (cannot be loaded|is damaged)"),
        ({"num_attention_heads": 0}, "compact cannot be loaded"),
        ({"num_attention_heads": -4}, "compact|record"),
        ({"hidden_size": -32}, "compact cannot be loaded"),
        ({"hidden_size": "32"}, "compact cannot be loaded"),
        ({"hidden_size": None}, "compact cannot be loaded"),
        ({"vocab_size": 0}, "compact"),
        ({"hidden_act": "no such function"}, "compact cannot be loaded"),
        ({"dtype": "load"}, "compact cannot be loaded"),
        ({"id2label": ["a"]}, "compact cannot be loaded"),
        ({"id2label": {"0": "only one"}}, "compact is damaged or mixed"),
        ({"model_type": "../../etc"}, "compact cannot be loaded"),
        ({"model_type": "vit"}, "compact"),
        ({"model_type": 3}, "compact cannot be loaded"),
        ({"architectures": ["BertModel"]}, "compact is damaged or mixed"),
        ({"architectures": ["RobertaForSequenceClassification"]}, "is not of the type 'bert'"),
        ({"architectures": ["BertConfig"]}, "which transformers does not have"),
        ({"architectures": ["__loader__"]}, "which transformers does not have"),
        ({"architectures": [["x"]]}, "which transformers does not have"),
        ({"architectures": "Bert"}, "which transformers does not have"),
        ({"text_config": {"base_model_name_or_path": "me/model"}}, "asks for an adapter of another model"),
        ({"transformers_weights": "adapter_model.bin"}, "asks for weights from another file"),
        ({"quantization_config": {"quant_method": "gptq"}}, "asks for weights that are quantized"),
        ({"attn_implementation": "me/kernel"}, "asks for a kernel from elsewhere"),
        ({"_attn_implementation_internal": "me/kernel"}, "asks for a kernel from elsewhere"),
        ({"text_config": [{"_attn_implementation": {"": "me/kernel"}}]}, "asks for a kernel from elsewhere"),
        ({"__class__": "x"}, "compact cannot be loaded"),
    ],
)
def test_a_hostile_configuration_is_refused_in_one_line(folder, change, message):
    edit_config(folder, lambda config: config.update(change))
    with pytest.raises(ValueError, match=message) as caught:
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
    with pytest.raises(FileNotFoundError, match="Pickles are not read"):
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
