"""The mode of W&B, and errors about its settings."""

import logging
import os
import socket
import time
from pathlib import Path

import pytest
import wandb

from gating.tracking import loggers
from gating.tracking.csv_log import CsvLogger
from gating.tracking.loggers import build_loggers, close_wandb, log_outcome, resolve_mode
from tests.support.fake_wandb import KEY, fake_server


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    close_wandb(failed=True)
    wandb.teardown()  # wandb caches its settings


def test_without_an_account_runs_are_offline():
    assert resolve_mode("auto") == "offline"


def test_environment_and_key_decide_the_mode(monkeypatch, tmp_path):
    host = wandb.Settings().base_url.removeprefix("https://")
    (tmp_path / "netrc").write_text(f"machine {host} login user password {'x' * 40}\n")
    assert resolve_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_mode("auto") == "disabled"
    assert resolve_mode("offline") == "offline"
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    assert resolve_mode("auto") == "offline"


def test_an_identity_token_is_an_account(monkeypatch, tmp_path, capfd):
    (tmp_path / "token").write_text("an.identity.token")
    monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    assert resolve_mode("auto") == "online"
    assert resolve_mode("offline") == "offline"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert resolve_mode("auto") == "offline"
    assert resolve_mode("online") == "online"
    assert capfd.readouterr() == ("", "")


def test_a_key_in_the_settings_file_of_wandb_is_an_account(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    (tmp_path / "settings").write_text(f"[default]\napi_key = {KEY}\n")
    wandb.teardown()
    assert resolve_mode("auto") == "online"


def test_the_key_of_another_server_is_not_used(monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text(f"machine elsewhere.org login user password {KEY}\n")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.here.org")
    wandb.teardown()
    assert resolve_mode("auto") == "offline"
    (tmp_path / "netrc").write_text(f"machine wandb.here.org login user password {KEY}\n")
    assert resolve_mode("auto") == "online"


def test_online_without_an_account_names_the_remedy():
    with pytest.raises(ValueError, match="wandb login"):
        resolve_mode("online")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("WANDB_MODE", "nonsense"), ("WANDB_BASE_URL", "notaurl"), ("WANDB_PROJECT", "a/b#c"), ("WANDB_RUN_ID", "a/b")],
)
def test_settings_that_wandb_refuses_are_reported_before_a_run(variable, value, monkeypatch):
    wandb.teardown()
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=r"W&B cannot read its settings \(.*\)\. Correct the variables WANDB_"):
        resolve_mode("auto")
    assert resolve_mode("disabled") == "disabled"


@pytest.mark.parametrize("options", [{"project": "a/b"}, {"project": "x" * 300}, {"tags": ["x" * 100]}, {"tags": [""]}])
def test_options_that_wandb_refuses_disable_wandb_only(options, tmp_path, caplog):
    (csv,) = build_loggers(tmp_path, mode="offline", **options)
    assert isinstance(csv, CsvLogger)
    assert [record.message.startswith("W&B cannot be used offline (") for record in caplog.records] == [True]


def test_whitespace_around_a_key_is_stripped(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", " \n")
    assert resolve_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", f"{KEY}\n")
    assert resolve_mode("auto") == "online"
    assert os.environ["WANDB_API_KEY"] == KEY


@pytest.mark.runs
def test_two_runs_in_one_process_do_not_merge(tmp_path):
    folders = []
    for name in ("one", "two"):
        logger, _ = build_loggers(tmp_path / name, mode="offline")
        logger.log_metrics({"x": 1.0})
        folders += close_wandb(failed=False)
    assert folders[0] != folders[1]
    assert all(folder.exists() for folder in folders)
    assert wandb.run is None


def test_disabled_leaves_the_csv_file(tmp_path):
    (csv,) = build_loggers(tmp_path, mode="disabled")
    csv.log_metrics({"x": 1.0})
    csv.save()
    assert (tmp_path / "csv" / "metrics.csv").read_text() == "step,x\n0,1.0\n"
    assert close_wandb(failed=False) == []


# Outages of a local server.


@pytest.fixture
def online(monkeypatch):
    """Return a function that lets wandb use a server, with a timeout of a few seconds."""

    def use(url: str) -> None:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setattr(loggers, "_TIMEOUT_S", 2.0)
        wandb.teardown()  # wandb caches its settings

    yield use
    close_wandb(failed=True)
    monkeypatch.undo()
    wandb.teardown()


def closed_port() -> int:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return closed.getsockname()[1]


def warnings_in(caplog) -> list[str]:
    ours = [record for record in caplog.records if record.name.startswith("gating.")]
    return [record.message for record in ours if record.levelno >= logging.WARNING]


def kinds_of_runs(folder: Path) -> list[str]:
    return [path.name.rpartition("run-")[0] for path in (folder / "wandb").glob("*run-*")]


@pytest.mark.parametrize("outage", ["no network", "wrong key", "server error", "run refused"])
def test_a_run_that_cannot_be_online_is_offline_with_one_warning(tmp_path, online, caplog, outage):
    with fake_server() as server:
        server.fault = {"wrong key": 401, "server error": 500}.get(outage)
        server.fault_of_runs = {"run refused": 401}.get(outage)
        online(f"http://127.0.0.1:{closed_port()}" if outage == "no network" else server.url)
        assert resolve_mode("auto") == "online"
        for logger in (built := build_loggers(tmp_path, mode="auto")):
            logger.log_metrics({"x": 1.0}, step=1)
            logger.log_metrics({"x": 2.0}, step=2)
        log_outcome(built, {"num_heads": 4}, tmp_path)
        (folder,) = close_wandb(failed=False)
        questions = len(server.questions)
    assert folder.name.startswith("offline-run-")
    assert "offline-" in kinds_of_runs(tmp_path)
    (said,) = warnings_in(caplog)
    assert "The run continues offline; `wandb sync` uploads it later" in said
    assert KEY not in said
    assert questions < 10
    assert (tmp_path / "csv").exists()


def test_a_server_that_works_gets_the_run(tmp_path, online, caplog):
    with fake_server() as server:
        online(server.url)
        logger, _ = build_loggers(tmp_path, mode="auto", run_config={"model": {"token": "hf_" + "s" * 30}})
        logger.log_metrics({"x": 1.0}, step=1)
        (folder,) = close_wandb(failed=False)
        asked = "".join(body for _, body in server.questions)
    assert folder.name.startswith("run-")
    assert "UpsertBucket" in asked
    assert "hf_" + "s" * 30 not in asked
    assert warnings_in(caplog) == []


@pytest.mark.parametrize("outage", [None, "no network", "server error", "run refused"])
def test_a_run_with_an_identity_token_is_online_or_continues_offline(tmp_path, online, caplog, monkeypatch, outage):
    (tmp_path / "token").write_text("an.identity.token")
    with fake_server() as server:
        server.fault = {"server error": 500}.get(outage)
        server.fault_of_runs = {"run refused": 401}.get(outage)
        online(f"http://127.0.0.1:{closed_port()}" if outage == "no network" else server.url)
        monkeypatch.delenv("WANDB_API_KEY")
        monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
        monkeypatch.setenv("WANDB_CREDENTIALS_FILE", str(tmp_path / "credentials.json"))
        assert resolve_mode("auto") == "online"
        for logger in build_loggers(tmp_path / "run", mode="auto"):
            logger.log_metrics({"x": 1.0}, step=1)
        (folder,) = close_wandb(failed=False)
        asked = "".join(body for _, body in server.questions)
    assert folder.name.startswith("offline-run-" if outage else "run-")
    assert len(warnings_in(caplog)) == (1 if outage else 0)
    assert ("UpsertBucket" in asked) == (outage is None)


@pytest.mark.parametrize("fault", [500, "hang"])
def test_an_outage_during_a_run_does_not_stop_it(tmp_path, online, fault):
    with fake_server() as server:
        online(server.url)
        built = build_loggers(tmp_path, mode="auto")
        built[0].log_metrics({"x": 1.0}, step=1)
        server.fault = fault
        start = time.monotonic()
        for step in range(2, 50):
            built[0].log_metrics({"x": 1.0}, step=step)
        (folder,) = close_wandb(failed=False)
        assert time.monotonic() - start < 20  # a bound on hanging, not on speed
    assert list(folder.glob("run-*.wandb"))
    assert wandb.run is None


def test_a_crash_of_wandb_disables_wandb_only(tmp_path, monkeypatch, caplog):
    def gone(*_, **__):
        raise ConnectionResetError(104, "Connection reset by peer")

    logger, csv = build_loggers(tmp_path, mode="offline")
    logger.log_metrics({"x": 1.0}, step=1)
    monkeypatch.setattr(logger.experiment, "log", gone)
    monkeypatch.setattr(type(logger.experiment), "finish", gone)
    for step in range(2, 10):
        logger.log_metrics({"x": 1.0}, step=step)
        logger.log_hyperparams({"y": step})
    log_outcome([logger, csv], {"num_heads": 4}, tmp_path)
    close_wandb(failed=False)
    assert logger.is_broken
    assert wandb.run is None
    failed, unfinished = warnings_in(caplog)
    assert "W&B has failed ([Errno 104] Connection reset by peer). The run continues without it" in failed
    assert "W&B did not finish" in unfinished
    # The next job of a sweep gets a separate W&B run.
    monkeypatch.undo()
    logger, _ = build_loggers(tmp_path / "next", mode="offline")
    logger.log_metrics({"x": 1.0})
    assert not logger.is_broken
    assert kinds_of_runs(tmp_path / "next") == ["offline-"]


def test_a_missing_identity_token_is_reported_before_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"WANDB_IDENTITY_TOKEN_FILE=.*nowhere: there is no such file"):
        resolve_mode("auto")


def test_a_run_has_its_group_and_its_type(tmp_path):
    first = build_loggers(tmp_path, mode="offline", name="seed=0", group="sweep", job_type="dense", tags=["sweep"])[0]
    run = first.experiment
    assert (run.name, run.group, run.job_type, run.tags) == ("seed=0", "sweep", "dense", ("sweep",))
