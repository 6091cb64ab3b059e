"""Tokenizers trained on the training data."""

import random
import time

import pytest
import transformers
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer

from gating.data.tokenizers import _texts, load_or_train_tokenizer, train_tokenizer
from gating.data.tokens import special_token_ids
from gating.models.sources import NewModel, Pretrained, make_meta_model
from tests.support.versions import needs_marian

TEXT = "To be, or not to be:\n\n  that is the question. " * 20
TABLE = Dataset.from_dict({"text": [TEXT, None, "Wäre ich?"], "number": [1, 2, 3]})
STRANGE = "Größe 𝄞 \t tabs\nand <b>marks</b>  twice"


@pytest.mark.parametrize(
    ("frame", "first", "last"), [("none", None, None), ("end", None, "</s>"), ("both", "<s>", "</s>")]
)
def test_every_text_is_decoded_from_its_tokens(frame, first, last, tmp_path):
    made = train_tokenizer(TABLE, size=300, frame=frame)
    made.save_pretrained(tmp_path)
    for tokenizer in (made, AutoTokenizer.from_pretrained(tmp_path)):
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(STRANGE)["input_ids"])
        assert tokenizer.decode(tokenizer(STRANGE)["input_ids"], skip_special_tokens=True) == STRANGE
        assert (tokens[0] == first) == (first is not None)
        assert (tokens[-1] == last) == (last is not None)
        assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
        assert tokenizer.mask_token_id == 3


def test_pairs_have_both_ends():
    tokenizer = train_tokenizer(TABLE, size=300, frame="both")
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("b", "c")["input_ids"])
    assert tokens == ["<s>", "b", "</s>", "c", "</s>"]


def test_frequent_words_become_tokens_up_to_the_size():
    tokenizer = train_tokenizer(TABLE, size=280, frame="none")
    assert len(tokenizer) == 280
    assert len(tokenizer("question question")["input_ids"]) < len("question question") / 2


def test_a_very_long_word_takes_no_quadratic_time_and_changes_no_other_word():
    long = "".join(random.Random(0).choices("abcdefghij", k=1_000_000))
    start = time.perf_counter()
    tokenizer = train_tokenizer(Dataset.from_dict({"text": [f"{TEXT} {long}\n\n {TEXT}"]}), size=300, frame="none")
    assert time.perf_counter() - start < 60
    assert tokenizer.decode(tokenizer(long)["input_ids"]) == long
    text = f" {TEXT}\n {'x' * 1500} y"
    (pieces,) = _texts(Dataset.from_dict({"text": [text]}))
    assert max(map(len, pieces)) < 1010
    assert "".join(pieces) == text


def test_texts_of_nested_columns_count():
    table = Dataset.from_dict({"translation": [{"en": "cat cat cat", "de": "Katze Katze Katze"}] * 5})
    assert len(train_tokenizer(table, size=400, frame="end")("Katze")["input_ids"]) == 2


def test_a_given_tokenizer_is_loaded_and_must_fit(tmp_path):
    train_tokenizer(TABLE, size=280, frame="none").save_pretrained(tmp_path)

    def load(size):
        source = NewModel("gpt2", config={"vocab_size": size, "n_embd": 8, "n_head": 2}, tokenizer=str(tmp_path))
        meta_model = make_meta_model(source, transformers.AutoModelForCausalLM)
        return load_or_train_tokenizer(source, meta_model, DatasetDict(train=TABLE), frame="none")

    assert len(load(400)) == 280
    with pytest.raises(ValueError, match="vocab_size=279"):
        load(279)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", pytest.param("marian", marks=needs_marian)])
def test_a_new_tokenizer_is_the_same_when_it_is_loaded_with_its_model(model_type, tmp_path):
    """AutoTokenizer loads a class of its own for some families."""
    source = NewModel(model_type, config={"vocab_size": 300})
    auto_class = transformers.AutoModelForSeq2SeqLM if model_type == "marian" else transformers.AutoModelForCausalLM
    meta_model = make_meta_model(source, auto_class)
    made = load_or_train_tokenizer(source, meta_model, DatasetDict(train=TABLE), frame="none")
    made.save_pretrained(tmp_path)
    meta_model.config.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == len(made) <= 300
    assert loaded(STRANGE)["input_ids"] == made(STRANGE)["input_ids"]
    assert loaded.decode(loaded(STRANGE)["input_ids"]) == STRANGE
    assert loaded.eos_token_id is not None


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen2", "marian", "bart", "t5", "pegasus"])
def test_a_new_model_has_the_special_tokens_of_its_tokenizer(model_type):
    """Also if the default token IDs of its family lie outside its vocabulary."""
    tokenizer = train_tokenizer(TABLE, size=300, frame="end")
    source = NewModel(model_type, config={"vocab_size": 300})
    config = source.load_config(**special_token_ids(tokenizer, source.load_config()))
    assert config.eos_token_id == 2
    assert config.pad_token_id == 0
    if config.is_encoder_decoder:
        assert config.decoder_start_token_id in (0, 2)
        assert getattr(config, "forced_eos_token_id", 2) == 2


def test_an_eos_token_that_pads_is_no_padding_token_of_the_model(tmp_path):
    """Embeddings of padding are not trained."""
    tokenizer = train_tokenizer(TABLE, size=300, frame="none")
    tokenizer.pad_token = tokenizer.eos_token
    ids = special_token_ids(tokenizer, NewModel("gpt2", config={"vocab_size": 300}).load_config())
    assert ids == {"bos_token_id": 1, "eos_token_id": 2}


def test_a_pretrained_model_keeps_its_decoder_start_token(tmp_path):
    from transformers import T5Config

    T5Config(vocab_size=300, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1).save_pretrained(tmp_path)
    tokenizer = train_tokenizer(TABLE, size=300, frame="end")
    config = Pretrained(str(tmp_path)).load_config()
    assert "decoder_start_token_id" not in special_token_ids(tokenizer, config)
