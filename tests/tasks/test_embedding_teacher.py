"""Embeddings of a teacher, and their cache."""

import json

import datasets
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer

from gating.errors import InputError
from gating.tasks.embedding_teacher import add_embeddings, load_sentence_model
from tests.support.tiny_sentences import make_sentence_model, sentences_of


@pytest.fixture
def encoded(tmp_path, monkeypatch) -> list[int]:
    """Let the cache be empty; return a list to which each call of ``encode`` adds its number of texts."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    calls: list[int] = []
    encode = SentenceTransformer.encode

    def counting(self, texts, **options):
        calls.append(len(texts))
        return encode(self, texts, **options)

    monkeypatch.setattr(SentenceTransformer, "encode", counting)
    return calls


def embeddings_of(teacher, texts: list[str], *, max_length: int = 8) -> np.ndarray:
    splits = DatasetDict(train=Dataset.from_dict({"text": texts}))
    tokens = DatasetDict(train=Dataset.from_dict({"input_ids": [[1]] * len(texts)}))
    added = add_embeddings(splits, tokens, teacher, max_length=max_length)["train"]
    assert added.column_names == ["input_ids", "task_embeddings"]
    return np.array(added["task_embeddings"][:])


def test_embeddings_are_those_of_encode_and_computed_once(tmp_path, encoded):
    texts = sentences_of(9)
    teacher = load_sentence_model(str(make_sentence_model(tmp_path / "model")), setting="task.teacher")
    found = embeddings_of(teacher, texts, max_length=64)
    assert np.allclose(found, teacher.encode(texts), atol=1e-3)
    encoded.clear()
    assert np.array_equal(embeddings_of(teacher, texts, max_length=64), found)
    # The folder may have moved.
    (tmp_path / "model").rename(tmp_path / "moved")
    again = load_sentence_model(str(tmp_path / "moved"), setting="task.teacher")
    assert np.array_equal(embeddings_of(again, texts, max_length=64), found)
    assert not encoded
    assert teacher.max_seq_length == 24


def test_anything_that_changes_them_computes_them_anew(tmp_path, encoded):
    texts = sentences_of(9)
    load = {"setting": "task.teacher"}
    folder = make_sentence_model(tmp_path / "model")
    embeddings_of(load_sentence_model(str(folder), **load), texts)
    others = {
        "weights": make_sentence_model(tmp_path / "seed", seed=1),
        "pooling": make_sentence_model(tmp_path / "cls", pooling="cls"),
    }
    for name, other in others.items():
        encoded.clear()
        embeddings_of(load_sentence_model(str(other), **load), texts)
        assert encoded, name
    encoded.clear()
    embeddings_of(load_sentence_model(str(folder), **load), texts, max_length=6)
    embeddings_of(load_sentence_model(str(folder), **load), texts[1:])
    assert encoded == [9, 8]


def test_a_model_whose_code_would_run_is_refused(tmp_path):
    folder = make_sentence_model(tmp_path / "model")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Pooling: pass\n")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "evil.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match=f"task.teacher={folder}"):
        load_sentence_model(str(folder), setting="task.teacher")
    assert not (tmp_path / "ran").exists()
