"""Absurd sizes are refused before a model is built."""

import pytest
import transformers
from datasets import Dataset, DatasetDict
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from gating.data.labels import encode_labels
from gating.data.text.tokens import truncation_length
from gating.models.blueprint import check_memory, make_blueprint
from gating.models.configs import check_sizes
from gating.models.pretrained import Pretrained
from gating.models.sources import NewModel
from tests.support.tiny_run import make_model_folder

ABSURD = {"num_labels": 10**6, "num_hidden_layers": 10**6, "vocab_size": 10**12, "hidden_size": 10**15}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_sizes_are_refused_at_once(name, tmp_path):
    folder = make_model_folder(tmp_path / "model")
    config = {name: ABSURD[name]}
    for source in (Pretrained(str(folder), config=config), NewModel("bert", config=config)):
        with pytest.raises(ValueError, match=rf"model.config.{name}={ABSURD[name]} is larger than in any model"):
            make_blueprint(source, AutoModelForSequenceClassification)


def test_absurd_sizes_in_a_folder_are_refused(tmp_path):
    folder = make_model_folder(tmp_path / "model")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"num_hidden_layers": 3', '"num_hidden_layers": 3000000'))
    with pytest.raises(ValueError, match=r"config.num_hidden_layers=3000000 is larger"):
        make_blueprint(Pretrained(str(folder)), AutoModelForSequenceClassification)


def test_a_model_larger_than_the_memory_is_refused():
    source = NewModel("bert", config={"vocab_size": 900_000_000, "num_hidden_layers": 1})
    blueprint = make_blueprint(source, AutoModelForSequenceClassification)
    with pytest.raises(ValueError, match=r"The model big has [\d,]+ GB of weights .* this machine has"):
        check_memory(blueprint, title="big")
    check_memory(BertForSequenceClassification(BertConfig(num_hidden_layers=1)), title="small")


def test_numbers_of_rows_are_no_classes():
    rows = Dataset.from_dict({"text": ["a"] * 100_001, "label": list(range(100_001))})
    with pytest.raises(ValueError, match=r"has 100,001 classes.*data.label_column"):
        encode_labels(DatasetDict(train=rows))


def test_an_absurd_length_is_refused():
    source = NewModel("bert", config={"num_hidden_layers": 1})
    blueprint = make_blueprint(source, AutoModelForSequenceClassification)
    with pytest.raises(ValueError, match=r"data.max_length=1000000000000 is longer than any text"):
        truncation_length(blueprint, 10**12)


@pytest.mark.parametrize("family", ["Gemma3nText", "Gemma4Text", "LongcatFlash", "BigBird"])
def test_default_configurations_are_of_a_usual_size(family):
    check_sizes(vars(getattr(transformers, f"{family}Config")()), name="config")
