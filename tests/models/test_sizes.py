"""Absurd sizes are refused before a model is built."""

import pytest
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from gating.models.meta_model import check_memory, make_meta_model
from gating.models.sources import NewModel


def test_a_model_larger_than_the_memory_is_refused():
    source = NewModel("bert", config={"vocab_size": 900_000_000, "num_hidden_layers": 1})
    meta_model = make_meta_model(source, AutoModelForSequenceClassification)
    with pytest.raises(ValueError, match="model big"):
        check_memory(meta_model, title="big")
    check_memory(BertForSequenceClassification(BertConfig(num_hidden_layers=1)), title="small")
