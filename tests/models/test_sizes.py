"""Absurd sizes are refused before a model is built."""

import pytest
import transformers
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from gating.models.configs import check_layers
from gating.models.meta_model import check_memory, make_meta_model
from gating.models.pretrained import Pretrained
from gating.models.sources import NewModel
from tests.support.tiny_run import make_model_folder


def test_a_model_larger_than_the_memory_is_refused():
    source = NewModel("bert", config={"vocab_size": 900_000_000, "num_hidden_layers": 1})
    meta_model = make_meta_model(source, AutoModelForSequenceClassification)
    with pytest.raises(ValueError, match=r"The model big has [\d,]+ GB of weights .* this machine has"):
        check_memory(meta_model, title="big")
    check_memory(BertForSequenceClassification(BertConfig(num_hidden_layers=1)), title="small")


def test_absurd_numbers_of_layers_are_refused_at_once(tmp_path):
    folder = make_model_folder(tmp_path / "model")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"num_hidden_layers": 3', '"num_hidden_layers": 3000000'))
    for source in (Pretrained(str(folder)), NewModel("bert", config={"num_hidden_layers": 3_000_000})):
        with pytest.raises(ValueError, match=r"model.config.num_hidden_layers=3000000 is larger than in any model"):
            make_meta_model(source, AutoModelForSequenceClassification)


def test_a_size_that_overflows_is_one_sentence():
    source = NewModel("bert", config={"hidden_size": 10**15})
    with pytest.raises(ValueError, match=r"cannot be used for this task .*: Storage size calculation overflowed"):
        make_meta_model(source, AutoModelForSequenceClassification)


@pytest.mark.parametrize("family", ["Gemma3nText", "Gemma4Text", "LongcatFlash", "BigBird"])
def test_default_configurations_are_of_a_usual_size(family):
    check_layers(getattr(transformers, f"{family}Config")())
