"""Tokenizers that are not a model's, and those that only look so."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    ByT5Tokenizer,
    CanineTokenizer,
    DebertaV2Config,
    GPT2Config,
    MBartConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
    T5Config,
    ViTConfig,
    ViTModel,
    XLNetConfig,
)

from gating.serving.exporting import load_processor
from gating.vocabulary import check_known, check_vocabulary, vocabulary_size
from tests.support.tiny_run import make_model_folder

SPECIAL = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def of_words(words: list[str]) -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate([*SPECIAL.values(), *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, **SPECIAL)


MADE_UP = [BertConfig, GPT2Config, RobertaConfig, T5Config, MBartConfig, Qwen2Config, DebertaV2Config, XLNetConfig]


@pytest.mark.parametrize("config", MADE_UP)
def test_a_tokenizer_made_up_for_missing_files_is_refused(config, tmp_path):
    config().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tokens"):
        check_vocabulary(tokenizer, size=None, name=str(tmp_path))


def test_a_far_smaller_vocabulary_is_refused_unless_it_has_all_letters():
    with pytest.raises(ValueError, match="model 30522"):
        check_vocabulary(of_words([f"word{number}" for number in range(25)]), size=30522, name="x")
    characters = of_words(list("abcdefghijklmnopqrstuvwxyz0123456789"))
    for tokenizer in (characters, ByT5Tokenizer()):
        check_vocabulary(tokenizer, size=250112, name="x")


def test_plausible_tokenizers_pass():
    check_vocabulary(CanineTokenizer(), size=None, name="x")
    check_vocabulary(ByT5Tokenizer(), size=384, name="x")
    check_vocabulary(of_words(list("ACGT")), size=8, name="x")
    check_vocabulary(of_words([f"word{number}" for number in range(1000)]), size=50304, name="x")
    check_vocabulary(object(), size=10, name="x")


def test_more_than_a_third_of_unknown_tokens_is_refused():
    tokenizer = of_words(["a", "b"])
    check_known(tokenizer, torch.tensor([2, 4, 5, 1, 3]), name="training data")
    with pytest.raises(ValueError, match="training data"):
        check_known(tokenizer, torch.tensor([2, 4, 0, 3]), name="training data")
    check_known(tokenizer, torch.tensor([2, 3]), name="training data")


def test_an_export_refuses_a_saved_tokenizer_without_tokens(tmp_path):
    folder = make_model_folder(tmp_path / "model")
    BertConfig().save_pretrained(tmp_path / "config")
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    AutoTokenizer.from_pretrained(tmp_path / "config").save_pretrained(folder)
    assert len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]) == 5
    with pytest.raises(ValueError, match="has no tokens for texts"):
        load_processor(folder)


def test_the_size_of_a_vocabulary_is_that_of_the_embedding():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertModel(BertConfig(vocab_size=30, **sizes))
    assert vocabulary_size(model) == 30
    model.embeddings.word_embeddings = torch.nn.Embedding(40, 8)
    assert vocabulary_size(model) == 40
    assert vocabulary_size(ViTModel(ViTConfig(image_size=32, **sizes))) is None
