"""Paths and names on the hub, and errors while it is unreachable."""

import datasets
import huggingface_hub.constants
import pytest

from gating.models import hub
from tests.support.fake_wandb import fake_server
from tests.support.tiny_run import run_command


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
