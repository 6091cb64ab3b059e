"""Settings of sentence embeddings that cannot be used are refused before anything is written."""

from pathlib import Path

import pytest
from transformers import T5Config, T5Model

from tests.support.interruptions import end_of
from tests.support.tiny_sentences import make_sentence_inputs

pytestmark = pytest.mark.runs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("sentences")
    T5Model(T5Config(vocab_size=45, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)).save_pretrained(
        folder / "t5"
    )
    return make_sentence_inputs(folder)


REFUSED = {
    "distillation=logits": "Embeddings learn from a teacher with task.teacher",
    "task.teacher=none": "there is none: give a dense model with task.teacher=",
    "task.teacher=./nowhere": "./nowhere does not exist",
    "task.teacher_revision=v2": "task.teacher_revision=v2 is that of task.teacher, which is not given",
    "task.loss=cosine": "task.loss=cosine needs pairs of texts",
    "task.loss=nearest": "task.loss=nearest is not one of distance, cosine, multiple_negatives",
    "task.loss=distance task.teacher=none": "leave out task.teacher=none",
    "task.metrics=[ndcg]": "'ndcg', which these data do not have",
    "task.metrics=[accuracy]": "task.metrics has 'accuracy'",
    "task.similarity_weight=-1": "give a number from 0",
    "task.negations=2": "task.negations=2: give a number from 0 to 1",
    "task.negations=0.1": "none of the training texts has a form",
    "model.tokenizer=MODEL": "leave out model.tokenizer",
    "model.name=T5": "is an encoder with a decoder",
    "exports=[gguf]": "exports",
    "trainer=fsdp trainer.devices=2 trainer.precision=32-true exports=[onnx]": "Leave onnx out.",
    "data.train=nowhere.txt": "nowhere.txt",
}


@pytest.mark.parametrize("settings", REFUSED)
def test_setting_is_refused(settings, inputs, tmp_path, capsys):
    model = next(line for line in inputs if line.startswith("model.name=")).partition("=")[2]
    given = settings.replace("MODEL", model).replace("T5", str(Path(model).parent / "t5")).split()
    assert end_of(tmp_path / "run", inputs, *given)
    assert REFUSED[settings] in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_negations_of_pairs_without_a_teacher_are_refused(inputs, tmp_path, capsys):
    pairs = next(line for line in inputs if line.startswith("data.test=")).partition("=")[2]
    assert end_of(tmp_path / "run", inputs, f"data.train={pairs}", "task.negations=0.1")
    assert "task.negations=0.1 has no effect without task.loss=distance" in capsys.readouterr().err


def test_a_new_model_is_refused(inputs, tmp_path, capsys):
    settings = [line for line in inputs if not line.startswith("model")]
    assert end_of(tmp_path / "run", [*settings, "model=scratch", "model.model_type=bert"])
    assert "trains a model of sentence-transformers with its own tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_null_is_named_with_its_split(inputs, tmp_path, capsys):
    (tmp_path / "pairs.jsonl").write_text(
        '{"text_a": "the cat", "text_b": "a", "score": 1}\n{"text_a": "the", "text_b": null, "score": 2}\n'
    )
    files = [f"data.{split}={tmp_path / 'pairs.jsonl'}" for split in ("validation", "test")]
    assert end_of(tmp_path / "run", inputs, *files)
    assert "The validation data has no text_pair in row 2" in capsys.readouterr().err


def test_gradient_checkpointing_of_pairs_is_refused(inputs, tmp_path, capsys):
    pairs = next(line for line in inputs if line.startswith("data.test=")).partition("=")[2]
    assert end_of(tmp_path / "run", inputs, f"data.train={pairs}", "gradient_checkpointing=true")
    assert "disable gradient checkpointing" in capsys.readouterr().err
