"""Paths and names on the hub; errors, and data sets and models in a local cache, while it is unreachable."""

import json
import shutil
import socket
import time
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest
from datasets import Dataset
from datasets.arrow_writer import ArrowWriter
from transformers import AutoModelForSequenceClassification

from gating.data import sources
from gating.data.tokens import load_tokenizer
from gating.models import hub
from gating.models.sources import Pretrained
from tests.support.fake_wandb import fake_server
from tests.support.tiers import first_of
from tests.support.tiny_run import make_model_folder, run_command


def test_folder_inside_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "package_with_a_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)

    assert hub.locate("package://package_with_a_model/x") == str(package / "x")


def test_an_existing_folder_is_returned(tmp_path):
    assert hub.locate(str(tmp_path)) == str(tmp_path)


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)


def test_an_unreachable_hub_is_refused_at_once(online, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:9"):
        hub.locate("some/model")


@pytest.mark.parametrize(("status", "is_there"), [(200, True), (302, True), (404, True), (503, False)])
def test_a_hub_is_reachable_unless_it_returns_a_server_error(online, monkeypatch, status, is_there):
    with fake_server() as server:
        server.fault = status
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        if is_there:
            assert hub.locate("some/model") == "some/model"
            return
        for reason in ("it returned status 503", "offline mode"):
            with pytest.raises(ConnectionError, match=f"'some/model': .*cannot be reached .{reason}"):
                hub.locate("some/model")
        # The second failure needs no request.
        assert len(server.questions) == 1


@pytest.mark.processes
def test_hub_that_cannot_be_reached_is_one_sentence(tmp_path):
    """The real-world call of the README, without a network."""
    import urllib.request

    try:
        urllib.request.urlopen("https://huggingface.co", timeout=3).close()
        pytest.skip("the hub can be reached")
    except OSError:
        pass
    call = [
        "model.name=google-bert/bert-base-uncased",
        "data=glue",
        "data.name=sst2",
        "objective.num_heads=36",
        "output_dir=out",
    ]
    process = run_command(call, cwd=tmp_path)
    assert process.returncode == 1
    assert process.stderr.startswith("error: Cannot load the model 'google-bert/bert-base-uncased'")
    assert not (tmp_path / "out").exists()


REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(params=["offline mode", "refused", "silent"])
def no_hub(request, tmp_path, monkeypatch):
    """Make the hub unreachable in one of three ways, and the caches empty folders."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub, "_TIMEOUT", 0.5)
    for place in (huggingface_hub.constants, datasets.config):
        monkeypatch.setattr(place, "HF_HUB_OFFLINE", request.param == "offline mode")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if request.param == "silent":
            listening.listen()  # and never answers
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
        start = time.monotonic()
        yield tmp_path
        assert time.monotonic() - start < 15  # a bound on retries, not on speed


def snapshot(folder: Path, name: str, *, branch: str | None = "main") -> Path:
    """Create a snapshot in the hub's cache, of a branch or only of a commit."""
    place = folder / "hub" / name
    (place / "snapshots" / REVISION).mkdir(parents=True)
    if branch is not None:
        (place / "refs").mkdir()
        (place / "refs" / branch).write_text(REVISION)
    return place / "snapshots" / REVISION


def prepared(folder: Path, name: str, config: str) -> None:
    """Create a data set in the cache of `datasets`."""
    place = folder / "datasets" / name / config / "0.0.0" / REVISION
    place.mkdir(parents=True)
    short = name.rpartition("___")[2]
    info = {"config_name": config, "dataset_name": short, "version": {"version_str": "0.0.0"}, "splits": {}}
    for split, rows in (("train", 40), ("validation", 5)):
        table = Dataset.from_dict(
            {"text": [f"{split} {n}" for n in range(rows)], "label": [n % 2 for n in range(rows)]}
        )
        with ArrowWriter(path=str(place / f"{short}-{split}.arrow"), features=table.features) as writer:
            for row in table:
                writer.write(row)
            writer.finalize()
        info["features"] = table.features.to_dict()
        info["splits"][split] = {"name": split, "num_bytes": 1, "num_examples": rows, "dataset_name": short}
    (place / "dataset_info.json").write_text(json.dumps(info))


def test_a_data_set_is_loaded_from_the_cache_of_datasets(no_hub):
    prepared(no_hub, "org___reviews", "default")
    splits = sources.load_hub(path="org/reviews", test_split=None).splits
    assert {split: len(table) for split, table in splits.items()} == {"train": 40, "validation": 5}
    with pytest.raises(ValueError, match=r"data\.test_split"):
        sources.load_hub(path="org/reviews")


def test_a_task_of_glue_is_loaded_from_the_cache_of_datasets(no_hub):
    prepared(no_hub, "nyu-mll___glue", "rte")
    assert [len(table) for table in sources.load_glue(name="rte").splits.values()] == [38, 2, 5]
    with pytest.raises(ValueError, match=r"data\.path=nyu-mll/glue, data\.name=cola"):
        sources.load_glue(name="cola")


@pytest.mark.parametrize("branch", first_of(["main", "v2", None]))
def test_a_model_is_found_by_its_revision(no_hub, branch, tmp_path_factory):
    made = make_model_folder(tmp_path_factory.mktemp("made") / "model")
    shutil.copytree(made, snapshot(no_hub, "models--org--bert", branch=branch), dirs_exist_ok=True)
    source = Pretrained("org/bert", revision=branch or REVISION)
    assert source.load(AutoModelForSequenceClassification).config.num_hidden_layers == 3
    assert load_tokenizer(source).vocab_size == 45
    with pytest.raises(ConnectionError, match=r"'org/bert' \(revision"):
        hub.locate("org/bert", revision="other")


def test_a_tokenizer_alone_is_found(no_hub, tmp_path_factory):
    made = make_model_folder(tmp_path_factory.mktemp("made") / "model")
    folder = snapshot(no_hub, "models--org--words")
    for path in made.glob("token*"):
        shutil.copy(path, folder)
    assert load_tokenizer(Pretrained(str(made), tokenizer="org/words")).vocab_size == 45
