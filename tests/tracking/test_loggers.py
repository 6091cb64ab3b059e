"""The CSV file and the W&B run of a run: where they go, what resumes, and what an outage costs."""

import csv
import logging
import socket
import time
from pathlib import Path

import pytest
import wandb
from pytorch_lightning.loggers import CSVLogger

from gating.tracking import loggers
from gating.tracking.loggers import build_loggers, close_wandb, log_outcome, read_log, resolve_mode
from tests.support.fake_wandb import KEY, fake_server
from tests.support.tiers import first_of

SECRET = "hf_" + "s" * 30


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    close_wandb(failed=True)
    monkeypatch.undo()
    wandb.teardown()  # wandb caches its settings


def log(folder: Path, rows: list[tuple[int, dict[str, float]]], **options) -> list[Path]:
    """Log rows in a process of a run; return the folders of its W&B run."""
    for logger in build_loggers(folder, **options):
        for step, row in rows:
            logger.log_metrics(row, step=step)
        logger.save()
    return close_wandb(failed=False)


def rows_of(folder: Path, part: str = "") -> list[dict[str, str]]:
    with (folder / "csv" / part / "metrics.csv").open() as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def warnings_in(caplog) -> list[str]:
    ours = [record for record in caplog.records if record.name.startswith("gating.")]
    return [record.message for record in ours if record.levelno >= logging.WARNING]


# The CSV file.


def test_a_resumed_log_goes_on_with_the_same_and_with_new_columns(tmp_path):
    log(tmp_path, [(0, {"loss": 1.0}), (1, {"loss": 0.7})])
    log(tmp_path, [(1, {"loss": 0.5}), (1, {"accuracy": 0.9})], resume=True)
    assert rows_of(tmp_path) == [{"loss": "1.0", "step": "0"}, {"loss": "0.7", "step": "1"}]
    assert rows_of(tmp_path, "resumed-1") == [{"loss": "0.5", "step": "1"}, {"accuracy": "0.9", "step": "1"}]
    assert read_log(tmp_path) == [{"loss": 1.0, "step": 0.0}, {"loss": 0.5, "accuracy": 0.9, "step": 1.0}]
    assert read_log(tmp_path / "nowhere") == []


def test_a_row_that_a_full_disk_cut_off_is_none(tmp_path):
    log(tmp_path, [(0, {"loss": 1.25}), (1, {"loss": 1.5})])
    path = tmp_path / "csv" / "metrics.csv"
    path.write_text(path.read_text()[:-3])
    assert read_log(tmp_path) == [{"loss": 1.25, "step": 0.0}]
    log(tmp_path, [(1, {"loss": 1.5})], resume=True)
    assert read_log(tmp_path) == [{"loss": 1.25, "step": 0.0}, {"loss": 1.5, "step": 1.0}]


# The mode of W&B.


def test_account_and_environment_decide_the_mode(monkeypatch, tmp_path):
    assert resolve_mode("auto") == "offline"
    with pytest.raises(ValueError, match="wandb login"):
        resolve_mode("online")
    (tmp_path / "netrc").write_text(f"machine elsewhere.org login user password {KEY}\n")
    assert resolve_mode("auto") == "offline"
    host = wandb.Settings().base_url.removeprefix("https://")
    (tmp_path / "netrc").write_text(f"machine {host} login user password {KEY}\n")
    assert resolve_mode("auto") == "online"
    for mode in ("disabled", "offline"):
        monkeypatch.setenv("WANDB_MODE", mode)
        assert resolve_mode("auto") == mode
    assert resolve_mode("online") == "online"


def test_a_key_or_an_identity_token_in_the_environment_is_an_account(monkeypatch, tmp_path, capfd):
    (tmp_path / "token").write_text("an.identity.token")
    for name, value in (("WANDB_IDENTITY_TOKEN_FILE", str(tmp_path / "token")), ("WANDB_API_KEY", KEY)):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            wandb.teardown()
            assert resolve_mode("auto") == "online"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("options", [{"project": "a/b"}, {"tags": ["x" * 100]}, {"variable": "WANDB_BASE_URL"}])
def test_what_wandb_refuses_disables_wandb_only(options, tmp_path, caplog, monkeypatch):
    if name := options.pop("variable", None):
        wandb.teardown()
        monkeypatch.setenv(name, "notaurl")
    (logger,) = build_loggers(tmp_path, mode="offline", **options)
    assert isinstance(logger, CSVLogger)
    (said,) = warnings_in(caplog)
    assert "W&B cannot be used offline" in said


def test_disabled_leaves_the_csv_file(tmp_path):
    assert log(tmp_path, [(0, {"x": 1.0})], mode="disabled") == []
    assert [path.name for path in tmp_path.iterdir()] == ["csv"]


# The W&B run.


@pytest.mark.runs
def test_a_resumed_run_has_one_wandb_run_and_another_run_its_own(tmp_path):
    folders = log(tmp_path / "one", [(0, {"x": 1.0})], mode="offline")
    log(tmp_path / "one", [(1, {"x": 1.0})], mode="disabled", resume=True)
    both = log(tmp_path / "one", [(1, {"x": 1.0})], mode="offline", resume=True)
    assert both[:1] == folders
    assert len(both) == 2
    others = log(tmp_path / "two", [(0, {"x": 1.0})], mode="offline")
    assert len({path.name.split("-")[3] for path in [*both, *others]}) == 2
    assert wandb.run is None


def test_a_run_has_its_group_its_type_and_its_outcome(tmp_path):
    first = build_loggers(tmp_path, mode="offline", name="seed=0", group="sweep", job_type="dense", tags=["sweep"])[0]
    run = first.experiment
    assert (run.name, run.group, run.job_type, run.tags) == ("seed=0", "sweep", "dense", ("sweep",))
    log_outcome([first], {"num_heads": 4.0, "val/accuracy": 0.5})
    assert (run.summary["compact/num_heads"], run.summary["val/accuracy"]) == (4.0, 0.5)


def closed_port() -> int:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return closed.getsockname()[1]


@pytest.fixture
def online(monkeypatch):
    """Return a function that lets wandb use a server, with a timeout of a second."""

    def use(url: str) -> None:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", url)
        for name in ("_START_S", "_END_S"):
            monkeypatch.setattr(loggers, name, 1.0)
        wandb.teardown()  # wandb caches its settings

    return use


@pytest.mark.parametrize("outage", first_of(["no network", "wrong key", "server error"]))
def test_a_run_that_cannot_be_online_is_offline_with_one_warning(tmp_path, online, caplog, outage):
    with fake_server() as server:
        server.fault = {"wrong key": 401, "server error": 500}.get(outage)
        online(f"http://127.0.0.1:{closed_port()}" if outage == "no network" else server.url)
        *_, last = log(tmp_path, [(1, {"x": 1.0}), (2, {"x": 2.0})], mode="auto")
    assert last.name.startswith("offline-run-")
    (said,) = warnings_in(caplog)
    assert "The run continues offline; `wandb sync` uploads it later" in said
    assert KEY not in said
    assert len(read_log(tmp_path)) == 2


@pytest.mark.parametrize("account", ["key", "identity token"])
def test_a_server_that_works_gets_the_run_without_secrets(account, tmp_path, online, caplog, monkeypatch):
    with fake_server() as server:
        online(server.url)
        if account == "identity token":
            monkeypatch.delenv("WANDB_API_KEY")
            (tmp_path / "token").write_text("an.identity.token")
            monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
            monkeypatch.setenv("WANDB_CREDENTIALS_FILE", str(tmp_path / "credentials.json"))
        config = {"model": {"token": SECRET}}
        (folder,) = log(tmp_path / "run", [(1, {"x": 1.0})], mode="auto", run_config=config)
        asked = "".join(body for _, body in server.questions)
    assert folder.name.startswith("run-")
    assert "UpsertBucket" in asked
    assert SECRET not in asked
    assert warnings_in(caplog) == []


@pytest.mark.parametrize("fault", first_of([500, "hang"]))
def test_an_outage_during_a_run_does_not_stop_it(tmp_path, online, fault):
    with fake_server() as server:
        online(server.url)
        logger, _ = build_loggers(tmp_path, mode="auto")
        logger.log_metrics({"x": 1.0}, step=1)
        server.fault = fault
        start = time.monotonic()
        for step in range(2, 50):
            logger.log_metrics({"x": 1.0}, step=step)
        (folder,) = close_wandb(failed=False)
        assert time.monotonic() - start < 20  # a bound on hanging, not on speed
    assert list(folder.glob("run-*.wandb"))
    assert wandb.run is None


def test_a_crash_of_wandb_disables_wandb_only(tmp_path, monkeypatch, caplog):
    def gone(*_, **__):
        raise ConnectionResetError(104, "Connection reset by peer")

    logger, other = build_loggers(tmp_path, mode="offline")
    logger.log_metrics({"x": 1.0}, step=1)
    monkeypatch.setattr(logger.experiment, "log", gone)
    monkeypatch.setattr(type(logger.experiment), "finish", gone)
    for step in range(2, 10):
        logger.log_metrics({"x": 1.0}, step=step)
        logger.log_hyperparams({"y": step})
    log_outcome([logger, other], {"num_heads": 4})
    close_wandb(failed=False)
    assert wandb.run is None
    failed, unfinished = warnings_in(caplog)
    assert "Connection reset by peer). The run continues without it" in failed
    assert "W&B did not finish" in unfinished
    # The next job of a sweep gets a separate W&B run.
    monkeypatch.undo()
    assert len(log(tmp_path / "next", [(1, {"x": 1.0})], mode="offline")) == 1
