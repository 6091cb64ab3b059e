"""Dropout of models that follow a teacher."""

import pytest
import torch
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from gating.tasks.embedding import Embedding

SIZES = {"vocab_size": 12, "max_position_embeddings": 16}
CONFIGS = [
    (BertModel, BertConfig(**SIZES, hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8)),
    (DistilBertModel, DistilBertConfig(**SIZES, dim=8, n_heads=2, n_layers=1, hidden_dim=8)),
]


@pytest.mark.parametrize(("cls", "config"), CONFIGS, ids=["bert", "distilbert"])
def test_a_model_that_follows_a_teacher_has_no_dropout_and_keeps_its_configuration(cls, config):
    model = cls(config).train()
    described = config.to_dict()

    Embedding(loss="distance").adapt(model)

    ids = torch.arange(12).view(2, 6)
    first, second = (model(input_ids=ids).last_hidden_state for _ in range(2))
    assert torch.equal(first, second)
    assert model.config.to_dict() == described


def test_a_model_that_learns_from_pairs_keeps_its_dropout():
    model = CONFIGS[0][0](CONFIGS[0][1]).train()
    task = Embedding(loss="cosine")

    task.adapt(model)

    ids = torch.arange(12).view(2, 6)
    assert not torch.equal(model(input_ids=ids).last_hidden_state, model(input_ids=ids).last_hidden_state)
    assert not any(parameter.requires_grad for parameter in model.pooler.parameters())
