"""Absurd sizes are refused before a model is built."""

import pytest
from datasets import Dataset, DatasetDict
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from gating.data.labels import encode_labels
from gating.models.meta_model import check_memory, make_meta_model
from gating.models.sources import NewModel


def test_a_model_larger_than_the_memory_is_refused():
    source = NewModel("bert", config={"vocab_size": 900_000_000, "num_hidden_layers": 1})
    meta_model = make_meta_model(source, AutoModelForSequenceClassification)
    with pytest.raises(ValueError, match=r"The model big has [\d,]+ GB of weights .* this machine has"):
        check_memory(meta_model, title="big")
    check_memory(BertForSequenceClassification(BertConfig(num_hidden_layers=1)), title="small")


def test_numbers_of_rows_are_no_classes():
    rows = Dataset.from_dict({"text": ["a"] * 100_001, "label": list(range(100_001))})
    with pytest.raises(ValueError, match=r"has 100,001 classes.*data.label_column"):
        encode_labels(DatasetDict(train=rows))
