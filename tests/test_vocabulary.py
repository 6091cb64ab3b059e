"""Tokenizers that are not a model's, and those that only look so."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    BertConfig,
    ByT5Tokenizer,
    CanineTokenizer,
    DebertaV2Config,
    GPT2Config,
    MBartConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
    T5Config,
    XLNetConfig,
)

from gating.serving.exporting import load_processor
from gating.vocabulary import check_known, check_vocabulary
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
        check_vocabulary(tokenizer, name=str(tmp_path))


def test_plausible_tokenizers_pass():
    check_vocabulary(CanineTokenizer(), name="x")
    check_vocabulary(ByT5Tokenizer(), name="x")
    check_vocabulary(of_words(list("ACGT")), name="x")
    check_vocabulary(of_words([f"word{number}" for number in range(1000)]), name="x")
    check_vocabulary(object(), name="x")


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
