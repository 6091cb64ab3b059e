"""A user's own source of data: the example in docs/howto/data.md, and the errors of invalid ones."""

import json
import re
import sys
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

import train
from gating.data.examples import Examples, as_examples
from tests.support.tiny_run import ROOT, compose_settings, make_model_folder

PAGE = (ROOT / "docs" / "howto" / "data.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```(\w+).*\n((?:.*\n)*?)```", PAGE))
ROWS = Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]})


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """Return a folder with the example's files, from which modules can be imported."""
    (tmp_path / "conf_of_mine" / "data").mkdir(parents=True)
    (tmp_path / "conf_of_mine" / "data" / "reviews.yaml").write_text(BLOCKS["yaml"])
    (tmp_path / "my_reviews.py").write_text(BLOCKS["python"])
    (tmp_path / "reviews").mkdir()
    lines = [json.dumps({"body": f"word{row % 40} word{row // 40}", "stars": row % 5 + 1}) for row in range(60)]
    (tmp_path / "reviews" / "en.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("my_reviews", "broken", "mine"):
        sys.modules.pop(name, None)


def command() -> list[str]:
    """Return the settings of the example's command; Hydra's setting of its folder differs outside a command."""
    words = BLOCKS["bash"].split()
    at = words.index("--config-dir")
    return [f"hydra.searchpath=[file://{Path(words[at + 1]).absolute()}]", *words[at + 2 :]]


@pytest.mark.runs
def test_the_example_runs(own, capsys):
    model = make_model_folder(own / "model")
    small = ["data.batch_size=8", "trainer.max_steps=8", "trainer.accelerator=cpu", "objective=none", "logger=csv"]
    overrides = [*command(), "model=pretrained", f"model.name={model}", *small, "callbacks=none"]
    train.run(compose_settings([*overrides, f"output_dir={own / 'out'}"]))
    assert "of 60 rows: 48 train, 6 validation, 6 test" in capsys.readouterr().out
    assert "test/accuracy" in json.loads((own / "out" / "metrics.json").read_text())


@pytest.mark.parametrize(
    "returned", [ROWS, {"train": ROWS}, DatasetDict(train=ROWS), Examples(DatasetDict(train=ROWS))]
)
def test_a_data_set_a_dictionary_and_examples_are_accepted(returned):
    assert as_examples(returned, target="mine.load").splits["train"][:] == ROWS[:]
