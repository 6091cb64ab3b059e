"""Runs of every task on a single table, from which validation and test splits are drawn."""

import json
from pathlib import Path

import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pillow

import train
from tests.support.tiny_run import WORDS, compose_settings, make_model_folder
from tests.tasks.test_tasks import SETTINGS

NUM_ROWS = 60


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> list[str]:
    return ["model=pretrained", f"model.name={make_model_folder(tmp_path_factory.mktemp('one') / 'model')}"]


def run(overrides: list[str], folder: Path) -> dict:
    """Train a dense model in this process, and return its metrics."""
    settings = [setting for setting in SETTINGS if not setting.startswith("objective")]
    train.run(compose_settings([*settings, *overrides, "objective=none", f"output_dir={folder}"]))
    return json.loads((folder / "metrics.json").read_text())


def words(row: int) -> str:
    return " ".join((WORDS[row % 40], WORDS[row // 40], WORDS[row * 7 % 40]))


TABLES = {
    "sequence_classification": lambda row: {"text": words(row), "label": f"kind {row % 3}"},
    "regression": lambda row: {"sentence1": words(row), "sentence2": words(row + 1), "score": row / 7},
    "token_classification": lambda row: {"tokens": words(row).split(), "tags": ["O", "B-name", "O"]},
    "question_answering": lambda row: {
        "context": words(row),
        "question": WORDS[row % 40],
        "answers": {"text": [WORDS[row % 40]], "answer_start": [0]},
    },
    "masked_lm": lambda row: {"text": words(row)},
}


@pytest.mark.runs
@pytest.mark.parametrize("task", TABLES)
def test_one_table_is_enough(task, bert, tmp_path, capsys):
    path = tmp_path / "table.jsonl"
    path.write_text("\n".join(json.dumps(TABLES[task](row)) for row in range(NUM_ROWS)))
    overrides = [f"task={task}", "data=files", f"data.train={path}", "trainer.max_steps=4"]
    numbers = run([*bert, *overrides], tmp_path / "out")
    assert "of 60 rows: 48 train, 6 validation, 6 test" in capsys.readouterr().out
    assert any(name.startswith("test/") for name in numbers)


T5 = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 270}


@pytest.mark.runs
def test_one_table_of_pairs_is_enough(tmp_path, capsys):
    path = tmp_path / "pairs.tsv"
    path.write_text("text_a\ttext_b\n" + "".join(f"{words(row)}\t{words(row)}\n" for row in range(NUM_ROWS)))
    model = ["model=scratch", "model.model_type=t5", *(f"+model.config.{name}={value}" for name, value in T5.items())]
    overrides = ["task=seq2seq", "data=pairs", f"data.train={path}", "trainer.max_steps=2"]
    numbers = run([*model, *overrides, "data.max_target_length=8"], tmp_path / "out")
    assert "of 60 rows: 48 train, 6 validation, 6 test" in capsys.readouterr().out
    assert "test/bleu" in numbers


@pytest.mark.runs
def test_one_table_of_images_is_enough(tmp_path, capsys):
    images = [Pillow.new("L", (8, 8), 4 * row) for row in range(NUM_ROWS)]
    features = Features({"image": Image(), "label": Value("string")})
    labels = ["dark", "light"] * (NUM_ROWS // 2)
    Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(tmp_path / "images.parquet")
    model = ["experiment=digits-vit", "model.config.hidden_size=16", "model.config.num_hidden_layers=2"]
    data = ["data=files", f"data.train={tmp_path}/images.parquet", "trainer.max_steps=2"]
    numbers = run([*model, "model.config.num_attention_heads=4", *data], tmp_path / "out")
    assert "of 60 rows: 48 train, 6 validation, 6 test" in capsys.readouterr().out
    assert "test/accuracy" in numbers
