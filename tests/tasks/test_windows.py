"""Windows over long texts, and positions of answers in them."""

from itertools import pairwise

import pytest
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer, BertConfig, BertForQuestionAnswering

from gating.data.examples import Examples
from gating.errors import InputError
from gating.tasks.question_answering import QuestionAnswering, make_windows, read_answers
from tests.support.tiny_run import make_model_folder

CONTEXT = " ".join(f"word{i}" for i in range(1, 31))
ANSWER = "word20 word21"
ANSWERS = {"text": [ANSWER], "answer_start": [CONTEXT.index(ANSWER)]}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(make_model_folder(tmp_path_factory.mktemp("windows") / "model"))


def windows_of(tokenizer, *, answers=ANSWERS, question="word0 word3", max_length=16, stride=4) -> list[dict]:
    batch = {"question": [question], "context": [CONTEXT], "answers": [answers], "example": [7]}
    made = make_windows(tokenizer, max_length, stride)(batch)
    return [dict(zip(made, values, strict=True)) for values in zip(*made.values(), strict=True)]


def words_of(window) -> list[str]:
    return [CONTEXT[low:high] for low, high in window["metric_offsets"] if low >= 0]


def test_windows_cover_the_text_and_overlap(tokenizer):
    windows = windows_of(tokenizer)
    words = [words_of(window) for window in windows]
    assert all(len(window["input_ids"]) <= 16 for window in windows)
    assert all(first[-4:] == second[:4] for first, second in pairwise(words))
    assert {word for some in words for word in some} == set(CONTEXT.split())
    assert all(window["metric_example"] == 7 for window in windows)


def test_positions_are_those_of_a_whole_answer_or_of_the_cls_token(tokenizer):
    whole = 0
    for window in windows_of(tokenizer):
        start, end = window["start_positions"], window["end_positions"]
        if set(ANSWER.split()) <= set(words_of(window)):
            assert tokenizer.decode(window["input_ids"][start : end + 1]) == ANSWER
            whole += 1
        else:
            assert start == end == window["metric_cls_index"] == 0
    assert whole >= 1


def test_positions_without_an_answer_are_those_of_the_cls_token(tokenizer):
    windows = windows_of(tokenizer, answers={"text": [], "answer_start": []})
    assert {window["start_positions"] for window in windows} == {0}


def test_an_answer_that_begins_inside_a_token_includes_the_token(tokenizer):
    start = CONTEXT.index("word5") + 2
    windows = windows_of(tokenizer, answers={"text": ["rd5 wo"], "answer_start": [start]})
    first = windows[0]
    piece = first["input_ids"][first["start_positions"] : first["end_positions"] + 1]
    assert tokenizer.decode(piece) == "word5 word6"


def test_answers_are_read_without_what_else_is_in_them():
    value = {"text": ["b"], "answer_start": [2], "answer_end": [3]}
    table = Dataset.from_dict({"context": ["a b"], "answers": [value]})
    assert read_answers(DatasetDict(train=table))["train"]["answers"][0] == {"text": ["b"], "answer_start": [2]}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("b", "not in the format of SQuAD"),
        ({"text": "b", "answer_start": 2}, "not in the format of SQuAD"),
        ({"text": ["b"], "answer_start": []}, "not in the format of SQuAD"),
    ],
)
def test_invalid_answers_are_named(value, message):
    table = Dataset.from_dict({"context": ["a b"], "answers": [value]})
    with pytest.raises(ValueError, match=message):
        read_answers(DatasetDict(train=table))


@pytest.mark.parametrize(
    ("text", "start", "is_there"),
    [("word2", 6, True), ("word2", 4, True), ("Word2 ", 6, True), ("word2", 60, False), ("nowhere", 0, False)],
)
def test_answer_starts_may_be_off_by_a_few_characters(text, start, is_there):
    table = Dataset.from_dict({"context": [CONTEXT], "answers": [{"text": [text], "answer_start": [start]}]})
    if is_there:
        assert read_answers(DatasetDict(train=table))["train"]["answers"][0]["answer_start"] == [start]
    else:
        with pytest.raises(ValueError, match="answer_start"):
            read_answers(DatasetDict(train=table))


@pytest.mark.parametrize(("stride", "answer_start"), [(10, 0), (-1, 0), (2, -1)])
def test_questions_leave_room_and_answers_are_inside(tokenizer, stride, answer_start):
    row = {
        "question": "word0 word3",
        "context": CONTEXT,
        "answers": {"text": ["word1"], "answer_start": [answer_start]},
    }
    rows = Dataset.from_list([row])
    model = BertForQuestionAnswering(
        BertConfig(vocab_size=100, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(InputError, match="data.stride" if answer_start == 0 else "answer_start"):
        QuestionAnswering().prepare(
            Examples(DatasetDict(train=rows, validation=rows)), tokenizer, model, max_length=14, stride=stride
        )
