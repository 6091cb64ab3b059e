"""Runs that upload their compact model, and the data set in its card."""

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub import ModelCard

from gating.report.metadata import describe_data
from gating.run import execute
from gating.run.folder import is_finished
from gating.storage.hub import upload
from tests.support.fake_hub import TOKEN, fake_hub
from tests.support.interruptions import end_of, run_in
from tests.support.tiny_run import make_inputs

# huggingface_hub's own use of its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with fake_hub(monkeypatch) as server:
        yield server


@pytest.mark.runs
def test_a_finished_run_uploads_its_model_with_its_results(hub, tmp_path, monkeypatch):
    inputs, run = make_inputs(tmp_path / "reviews"), tmp_path / "run"

    def upload_when_finished(*places, **options):
        assert is_finished(run)
        return upload(*places, **options)

    monkeypatch.setattr(execute, "upload", upload_when_finished)
    run_in(run, inputs, "push_to_hub=me/small")
    model, numbers = hub.models["me/small"], json.loads((run / "metrics.json").read_text())
    assert model.private
    assert model.files() == {path.name: path.read_bytes() for path in (run / "compact").iterdir()}
    data = ModelCard.load(run / "compact" / "README.md").data
    found = {(r.dataset_name, r.dataset_split, r.metric_type): r.metric_value for r in data.eval_results}
    assert found == {
        ("reviews", "validation", "accuracy"): round(numbers["val/accuracy"], 6),
        ("reviews", "test", "accuracy"): round(numbers["test/accuracy"], 6),
    }
    assert (data.pipeline_tag, data.datasets, data.base_model) == ("text-classification", None, None)


@pytest.mark.parametrize(
    ("token", "name", "message"),
    [
        (TOKEN, "me/na me", "push_to_hub='me/na me' is not a valid name on the hub"),
        (None, "me/small", "An upload to me/small needs a token"),
    ],
)
def test_name_and_token_are_checked_before_training(hub, tmp_path, monkeypatch, capsys, token, name, message):
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    inputs, run = make_inputs(tmp_path / "reviews"), tmp_path / "run"
    assert end_of(run, inputs, f"push_to_hub='{name}'") == 1
    assert message in capsys.readouterr().err
    assert not run.exists()
    assert not hub.models


SOURCES = "gating.data.sources"


@pytest.mark.parametrize(
    ("settings", "name", "hub_id", "splits"),
    [
        ({"_target_": f"{SOURCES}.load_glue", "name": "cola"}, "GLUE cola", "nyu-mll/glue", ["train", "validation"]),
        (
            {"_target_": f"{SOURCES}.load_glue", "name": "mnli"},
            "GLUE mnli",
            "nyu-mll/glue",
            ["train", "validation_matched"],
        ),
        (
            {"_target_": f"{SOURCES}.load_hub", "path": "org/set", "validation_split": None, "test_split": "dev"},
            "org/set",
            "org/set",
            ["train", "dev"],
        ),
        ({"_target_": f"{SOURCES}.load_hub", "path": "."}, Path.cwd().name, None, None),
        ({"_target_": f"{SOURCES}.load_files", "train": "data/wnut17/train.tsv"}, "wnut17", None, None),
        ({"_target_": f"{SOURCES}.load_files", "train": "data/reviews.csv"}, "reviews", None, None),
        ({"_target_": f"{SOURCES}.load_bbc_news", "seed": 0}, "bbc_news", None, None),
        ({"_target_": "my_module.load_reviews"}, "reviews", None, None),
    ],
)
def test_the_data_set_of_the_card_is_that_of_the_settings(settings, name, hub_id, splits):
    data = describe_data(settings)
    assert (data.name, data.hub_id) == (name, hub_id)
    assert [data.splits.get(split) for split in ("validation", "test")] == (splits or [None, None])
