"""The pooling of a model of sentence-transformers."""

import json
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from gating.embedding.parts import SentenceHead
from gating.errors import InputError
from gating.report.metadata import is_sentence_folder
from tests.integrations.sentence_models import make_cross_encoder
from tests.support.tiny_sentences import make_sentence_model, sentences_of


def difference_of(folder: Path) -> float:
    """Return the largest difference of embeddings from those of sentence-transformers, in a batch with padding."""
    texts = sentences_of(9)
    expected = torch.tensor(SentenceTransformer(str(folder), device="cpu").encode(texts))
    model, head = AutoModel.from_pretrained(folder).eval(), SentenceHead.load(folder)
    inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    assert not inputs["attention_mask"].all()
    with torch.no_grad():
        embeddings = head(model(**inputs), inputs["attention_mask"])
    assert embeddings.shape == expected.shape
    return float((embeddings - expected).abs().max())


@pytest.mark.parametrize(
    ("pooling", "dense"), [("mean", None), ("cls", None), ("lasttoken", None), ("max", None), ("mean", 12)]
)
def test_embeddings_are_those_of_sentence_transformers(pooling, dense, tmp_path):
    folder = make_sentence_model(tmp_path / "model", pooling=pooling, dense=dense)
    assert is_sentence_folder(folder)
    assert difference_of(folder) < 1e-6


def test_modules_are_neither_trained_nor_in_training_mode(tmp_path):
    head = SentenceHead.load(make_sentence_model(tmp_path / "model", dense=12))
    assert not any(module.training for module in head.parts.modules())
    assert not any(parameter.requires_grad for parameter in head.parameters())


def test_code_of_a_folder_is_not_run(tmp_path):
    folder = make_sentence_model(tmp_path / "model")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Pooling: pass\n")
    modules = json.loads((folder / "modules.json").read_text())
    for name in ("evil.Pooling", "os.system"):
        modules[1]["type"] = name
        (folder / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(InputError, match=f"names the module {name}, which is not one of sentence-transformers"):
            SentenceHead.load(folder)
    assert not (tmp_path / "ran").exists()


def test_a_cross_encoder_has_no_embeddings(tmp_path):
    make_cross_encoder(tmp_path).save(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "modules.json").is_file()
    assert not is_sentence_folder(tmp_path / "saved")
