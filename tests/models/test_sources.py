"""Pretrained and new models, and their refusals."""

import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertTokenizer,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from gating.data.tokens import load_tokenizer
from gating.models.sources import NewModel, Pretrained, make_meta_model
from tests.support.tiny_run import make_model_folder

SMALL_VIT = {"image_size": 8, "patch_size": 2, "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(make_model_folder(tmp_path_factory.mktemp("models") / "model"))


def test_pretrained_weights_are_kept_below_a_new_head(folder):
    stored = Pretrained(folder).load(AutoModelForSequenceClassification)
    for auto_class in (AutoModelForTokenClassification, AutoModelForQuestionAnswering):
        model = Pretrained(folder).load(auto_class, num_labels=2)
        for name, weight in model.bert.state_dict().items():
            assert torch.equal(weight, stored.bert.state_dict()[name]), name


def test_the_class_for_training_is_loaded(tmp_path):
    """Distilled DeiT models are saved as a class without labels."""
    sizes = {"image_size": 8, "patch_size": 2, "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
    DeiTForImageClassificationWithTeacher(DeiTConfig(**sizes, intermediate_size=16)).save_pretrained(tmp_path)
    for model in (
        Pretrained(str(tmp_path)).load(AutoModelForImageClassification),
        make_meta_model(Pretrained(str(tmp_path)), AutoModelForImageClassification),
    ):
        assert type(model) is DeiTForImageClassification


def test_weights_are_loaded_if_the_base_model_has_another_prefix(tmp_path):
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
    stored = Qwen2ForCausalLM(Qwen2Config(**sizes, num_attention_heads=2, num_key_value_heads=1))
    stored.save_pretrained(tmp_path)
    model = Pretrained(str(tmp_path)).load(AutoModelForQuestionAnswering)
    for name, weight in stored.model.state_dict().items():
        assert torch.equal(weight, model.base_model.state_dict()[name]), name


def test_a_head_for_another_number_of_classes_is_replaced(folder):
    model = Pretrained(folder).load(AutoModelForSequenceClassification, num_labels=5)
    assert model.classifier.weight.shape == (5, 32)


def test_a_changed_configuration_reaches_the_model(folder):
    model = Pretrained(folder, config={"hidden_dropout_prob": 0.3}).load(AutoModelForSequenceClassification)
    assert model.bert.embeddings.dropout.p == 0.3


def test_the_first_layers_are_loaded_with_their_weights(folder):
    stored = Pretrained(folder).load(AutoModelForSequenceClassification)
    model = Pretrained(folder, config={"num_hidden_layers": 2}).load(AutoModelForSequenceClassification)
    assert len(model.bert.encoder.layer) == 2
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, stored.state_dict()[name]), name


def test_more_layers_than_are_stored_are_refused(folder):
    source = Pretrained(folder, config={"num_hidden_layers": 4})
    with pytest.raises(ValueError, match=r"layer\.3\.attention"):
        source.load(AutoModelForSequenceClassification)


def test_a_new_model_follows_its_configuration():
    source = NewModel("vit", config={**SMALL_VIT, "num_channels": 1})
    meta_model = make_meta_model(source, AutoModelForImageClassification)
    assert {weight.device.type for weight in meta_model.parameters()} == {"meta"}
    model = source.load(AutoModelForImageClassification, num_labels=7)
    assert model.classifier.weight.shape == (7, 16)
    assert model.dtype == torch.float32
    assert source.processor is None


def test_a_size_that_does_not_fit_the_weights_is_refused(folder):
    source = Pretrained(folder, config={"intermediate_size": 48})
    with pytest.raises(ValueError, match="intermediate_size"):
        source.load(AutoModelForSequenceClassification)


def test_a_folder_with_an_adapter_is_refused_before_it_is_loaded(tmp_path):
    folder = make_model_folder(tmp_path / "model")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"adapter \(adapter_config\.json\)"):
        make_meta_model(Pretrained(str(folder)), AutoModelForSequenceClassification)


@pytest.mark.parametrize(("tokenizer", "revision"), [(None, "v2"), ("itself", "main")])
def test_a_tokenizer_has_the_revision_of_its_model(tokenizer, revision, folder, monkeypatch):
    asked = []

    def load(name, **options):
        asked.append(options["revision"])
        return BertTokenizer.from_pretrained(folder)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", load)
    load_tokenizer(Pretrained(folder, revision="v2", tokenizer=tokenizer and folder))
    assert asked == [revision]
