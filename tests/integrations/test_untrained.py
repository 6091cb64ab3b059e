"""``gating.prune(train=False)``: each kind of model becomes smaller without a step of training."""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

import gating
from gating.errors import InputError
from gating.structure.layers import count_units
from tests.integrations.sentence_models import make_embedder, save_transformer, texts

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*positions are few for layers"),
    pytest.mark.filterwarnings("ignore:The model has a loss of"),
]
TEXTS = texts(32, seed=1)
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture
def tokenizer(tmp_path):
    return AutoTokenizer.from_pretrained(save_transformer(tmp_path / "base", cls=BertForSequenceClassification))


def sizes(model):
    return count_units(model, "heads"), count_units(model, "neurons")


@pytest.mark.parametrize("labels", [[0, 1], None])
def test_a_classifier_with_labels_and_without(tmp_path, tokenizer, labels, capsys):
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    before = copy.deepcopy(model.state_dict())
    data = TEXTS if labels is None else Dataset.from_dict({"sentence": TEXTS, "label": labels * 16})
    compact = gating.prune(model, data, keep=0.5, train=False, tokenizer=tokenizer)
    assert isinstance(compact, BertForSequenceClassification)
    assert sizes(compact)[1] < sizes(model)[1]
    assert "without training" in capsys.readouterr().out
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(weight.requires_grad for weight in compact.parameters())
    gating.save_compact(compact, tmp_path / "compact", tokenizer=tokenizer)
    assert sizes(gating.load_compact(tmp_path / "compact")) == sizes(compact)


def test_a_model_that_is_not_fine_tuned_is_a_warning(tmp_path, tokenizer):
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    data = Dataset.from_dict({"sentence": TEXTS, "label": [0, 1] * 16})
    with pytest.warns(UserWarning, match="it is not fine-tuned for them"):
        gating.prune(model, data, num_heads=5, train=False, tokenizer=tokenizer)


def test_a_token_classifier_and_a_decoder(tmp_path, tokenizer):
    model = BertForTokenClassification(BertConfig(vocab_size=44, **SIZES, num_labels=5))
    assert sizes(gating.prune(model, TEXTS, num_heads=5, train=False, tokenizer=tokenizer)) == (5, 128)
    decoder = LlamaForCausalLM(LlamaConfig(vocab_size=44, **SIZES))
    compact = gating.prune(decoder, TEXTS, keep=0.5, train=False, tokenizer=tokenizer)
    assert sizes(compact)[1] < 128
    assert compact.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False).shape[1] <= 5


def test_an_embedding_model(tmp_path):
    model = make_embedder(tmp_path)
    compact = gating.prune(model, TEXTS, num_heads=5, train=False)
    assert count_units(compact.transformers_model, "heads") == 5
    assert count_units(model.transformers_model, "heads") == 12
    assert compact.encode(TEXTS[:2]).shape == model.encode(TEXTS[:2]).shape


def test_arguments_of_the_model_are_taken_as_they_are():
    model = ViTForImageClassification(ViTConfig(**SIZES, image_size=8, patch_size=4, num_labels=3))
    images = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    data = Dataset.from_dict({"pixel_values": images.tolist(), "labels": [0, 1] * 10})
    assert sizes(gating.prune(model, data.with_format("torch"), num_heads=3, train=False))[0] == 3


@pytest.mark.runs
@pytest.mark.filterwarnings("ignore:The compact model is .* times as fast")
def test_a_speed_up_is_timed(tmp_path, tokenizer, known_times, capsys):
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    compact = gating.prune(model, TEXTS, speedup=1.2, train=False, tokenizer=tokenizer)
    assert "times as fast" in capsys.readouterr().out
    assert compact.num_parameters() < model.num_parameters()


def test_what_has_no_steps_takes_no_settings_of_a_training(tmp_path, tokenizer):
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match="leave out recovery"):
        gating.prune(model, TEXTS, num_heads=5, train=False, tokenizer=tokenizer, recovery=0.5)
    with pytest.raises(InputError, match="tokenizer"):
        gating.prune(model, TEXTS, num_heads=5, train=False)
