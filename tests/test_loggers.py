import pytest
import wandb

from gating.lightning.loggers import build_loggers, close_wandb, resolve_mode


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    close_wandb(failed=True)


def test_without_an_account_runs_are_offline():
    assert resolve_mode("auto") == "offline"


def test_environment_and_key_are_followed(monkeypatch, tmp_path):
    host = wandb.Settings().base_url.removeprefix("https://")
    (tmp_path / "netrc").write_text(f"machine {host} login user password {'x' * 40}\n")
    assert resolve_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_mode("auto") == "disabled"
    assert resolve_mode("offline") == "offline"
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    assert resolve_mode("auto") == "offline"


def test_online_without_an_account_names_the_remedy():
    with pytest.raises(ValueError, match="wandb login"):
        resolve_mode("online")


def test_two_runs_in_one_process_do_not_merge(tmp_path):
    folders = []
    for name in ("one", "two"):
        logger, _ = build_loggers(tmp_path / name, mode="offline")
        logger.log_metrics({"x": 1.0})
        folders.append(close_wandb(failed=False))
    assert folders[0] != folders[1]
    assert all(folder.exists() for folder in folders)
    assert wandb.run is None


def test_disabled_leaves_the_csv_file(tmp_path):
    (csv,) = build_loggers(tmp_path, mode="disabled")
    csv.log_metrics({"x": 1.0})
    csv.save()
    assert (tmp_path / "csv" / "metrics.csv").read_text() == "step,x\n0,1.0\n"
    assert close_wandb(failed=False) is None
