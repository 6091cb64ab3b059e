"""Embeddings of a teacher, their cache, and the dropout of models that follow a teacher."""

import json

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer
from tokenizers import normalizers, processors
from tqdm import tqdm
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from gating.errors import InputError
from gating.tasks.embedding import Embedding
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


def test_embeddings_are_those_of_encode_and_computed_once(tmp_path, encoded, monkeypatch):
    texts, counts, update = sentences_of(9), [], tqdm.update

    def counted(self, number):
        update(self, number)
        # Bars that are not shown have no name.
        counts.append((getattr(self, "desc", ""), self.n))

    monkeypatch.setattr(tqdm, "update", counted)
    teacher = load_sentence_model(str(make_sentence_model(tmp_path / "model")), setting="task.teacher")
    found = embeddings_of(teacher, texts, max_length=64)
    assert ("Embeddings of the teacher", 9) in [(name.removesuffix(": "), number) for name, number in counts if name]
    assert np.allclose(found, teacher.encode(texts), atol=1e-3)
    encoded.clear()
    assert np.array_equal(embeddings_of(teacher, texts, max_length=64), found)
    # The folder may have moved.
    (tmp_path / "model").rename(tmp_path / "moved")
    again = load_sentence_model(str(tmp_path / "moved"), setting="task.teacher")
    assert np.array_equal(embeddings_of(again, texts, max_length=64), found)
    assert not encoded
    assert teacher.max_seq_length == 24


def test_a_teacher_without_a_tokenizer_is_refused(tmp_path):
    folder = make_sentence_model(tmp_path / "model")
    for path in folder.glob("tokenizer*.json"):
        path.unlink()
    with pytest.raises(InputError, match="has no tokens for texts"):
        load_sentence_model(str(folder), setting="task.teacher")


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


@pytest.mark.parametrize("change", ["normalizer", "post_processor", "side", "special", "inputs"])
def test_another_tokenizer_is_another_teacher(change, tmp_path, encoded):
    texts, load = sentences_of(9), {"setting": "task.teacher"}
    folder = str(make_sentence_model(tmp_path / "model"))
    embeddings_of(load_sentence_model(folder, **load), texts)
    teacher = load_sentence_model(folder, **load)
    backend = teacher.tokenizer.backend_tokenizer
    if change == "normalizer":
        backend.normalizer = normalizers.Prepend("the ")
    elif change == "post_processor":
        backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    elif change == "side":
        teacher.tokenizer.truncation_side = "left"
    elif change == "inputs":
        teacher.tokenizer.model_input_names = ["input_ids"]
    else:
        teacher.tokenizer.pad_token = teacher.tokenizer.unk_token
    encoded.clear()
    embeddings_of(teacher, texts)
    assert encoded == [9]


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_embeddings_of_any_size_keep_their_direction(scale, tmp_path, encoded, monkeypatch):
    texts = sentences_of(5)
    teacher = load_sentence_model(str(make_sentence_model(tmp_path / "model")), setting="task.teacher")
    expected = teacher.encode(texts)
    monkeypatch.setattr(
        SentenceTransformer, "encode", lambda *_, **options: scale * expected[:, : options.get("truncate_dim", 8)]
    )
    assert np.allclose(embeddings_of(teacher, texts, max_length=64), expected, atol=1e-3)


def test_embeddings_that_are_not_finite_are_refused_before_the_training(tmp_path, encoded):
    teacher = load_sentence_model(str(make_sentence_model(tmp_path / "model", dense=12)), setting="task.teacher")
    teacher[2].linear.bias.data[0] = np.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        embeddings_of(teacher, sentences_of(5))


def test_a_model_whose_code_would_run_is_refused(tmp_path):
    folder = make_sentence_model(tmp_path / "model")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Pooling: pass\n")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "evil.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match=f"task.teacher={folder}"):
        load_sentence_model(str(folder), setting="task.teacher")
    assert not (tmp_path / "ran").exists()


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
