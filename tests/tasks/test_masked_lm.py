"""Masked language modeling: masks and perplexity."""

import math

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import BertConfig, BertForMaskedLM

from gating.data.sources import Examples
from gating.data.tokenizers import train_tokenizer
from gating.tasks import MaskedLM
from gating.training.evaluation import evaluate

TABLE = Dataset.from_dict({"text": ["a quick brown fox jumps over the lazy dog " * 4, "and sleeps"]})


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TABLE, size=270, frame="both")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForMaskedLM(BertConfig(vocab_size=270, pad_token_id=0, initializer_range=1.0, **sizes)).eval()


def prepare(tokenizer, model, *, hidden=0.3, **options):
    return MaskedLM(hidden).prepare(Examples(DatasetDict(train=TABLE, validation=TABLE)), tokenizer, model, **options)


def test_some_words_are_masked_and_only_these_have_labels(tokenizer, model):
    prepared = prepare(tokenizer, model, max_length=32)
    blocks = list(prepared.splits["train"])
    batch = prepared.collate(blocks)
    counted = batch["labels"] != -100
    original = torch.nn.utils.rnn.pad_sequence([torch.tensor(b["input_ids"]) for b in blocks], batch_first=True)
    assert torch.equal(batch["labels"][counted], original[counted])
    assert torch.equal(batch["input_ids"][~counted], original[~counted])
    assert not torch.isin(original[counted], torch.tensor(tokenizer.all_special_ids)).any()
    assert 0.15 < counted.sum() / (original > 3).sum() < 0.45
    assert (batch["input_ids"][counted] == tokenizer.mask_token_id).float().mean() > 0.5


def test_masks_depend_on_the_batch_alone(tokenizer, model):
    """So validation is comparable between epochs, and resumed runs equal uninterrupted ones."""
    prepared = prepare(tokenizer, model, max_length=32)
    blocks = list(prepared.splits["train"])
    first = prepared.collate(blocks)
    torch.manual_seed(5)
    prepared.collate(blocks[:2])
    again, turned = prepared.collate(blocks), prepared.collate(blocks[::-1])
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["labels"], turned["labels"].flip(0))


def test_at_least_one_word_is_masked(tokenizer, model):
    prepared = prepare(tokenizer, model, hidden=1e-9)
    batch = prepared.collate([{"input_ids": tokenizer("fox")["input_ids"]}])
    assert (batch["labels"] != -100).sum() == 1
    assert torch.isfinite(model(**batch).loss)


def test_perplexity_is_that_of_the_masked_words(tokenizer, model):
    prepared = prepare(tokenizer, model, max_length=32)
    blocks = list(prepared.splits["validation"])
    batches = [prepared.collate(blocks[:2]), prepared.collate(blocks[2:])]
    values = evaluate(model, batches, task=MaskedLM(), metrics=prepared.all_metrics).metrics
    surprises = []
    for batch in batches:
        with torch.no_grad():
            logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits.double().log_softmax(-1)
        for row, place in (batch["labels"] != -100).nonzero().tolist():
            surprises.append(-logits[row, place, batch["labels"][row, place]].item())
    assert values["perplexity"] == pytest.approx(math.exp(sum(surprises) / len(surprises)), rel=1e-5)
