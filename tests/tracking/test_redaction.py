"""Redaction: a sentinel in each kind of secret must appear in no file and no output of a run."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import train
from gating.tracking.redaction import hidden_arguments, redact, redact_file, redact_output, redact_settings
from tests.support.tiny_run import compose_settings, run_command

SENTINEL = "s3ntinel"


@pytest.mark.parametrize(
    "text",
    [
        "+model.token=s3ntinel",
        "model.token='s3ntinel'",
        "['model.token=s3ntinel', 'data=files']",
        "https://me:s3ntinel@host.org/x",
        "https://s3ntinel@host.org/x",
        "git+ssh://user:s3ntinel@host:22/x",
        "https://host.org/x?token=s3ntinel&y=1",
        "https://host.org/x?X-Amz-Signature=s3ntinel",
        "https://host.org/x?y=1&sig=s3ntinel",
        "{'token': 's3ntinel', 'x': 1}",
        '{"api_key": "s3ntinel"}',
        "  hf_token: s3ntinel\n",
        "WANDB_API_KEY=s3ntinel",
        "db_password=s3ntinel",
        "got hf_s3ntinels3ntinels3ntinel, which is invalid",
    ],
)
def test_a_secret_in_a_text_is_redacted(text):
    assert SENTINEL not in redact(text)
    assert "***" in redact(text)


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MY_DB_PASSWORD"])
def test_secret_values_of_the_environment_are_redacted_everywhere(monkeypatch, name):
    monkeypatch.setenv(name, f"{SENTINEL}/abc")
    assert redact(f"a{SENTINEL}/abcb") == "a***b"
    monkeypatch.setenv(name, "short")
    assert redact("a short text") == "a short text"


def test_secret_values_of_the_command_line_are_redacted_everywhere(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "+model.token='s3ntinel1'", "seed=12345678"])
    assert redact("s3ntinel1 12345678") == "*** 12345678"
    with hidden_arguments():
        assert sys.argv == ["train.py", "+model.token='***'", "seed=12345678"]
    assert sys.argv[1] == "+model.token='s3ntinel1'"


def test_settings_are_redacted_and_otherwise_unchanged():
    settings = {
        "model": {"name": "bert", "token": SENTINEL, "pad_token": "[PAD]"},
        "data": {"path": f"https://me:{SENTINEL}@host/x", "token": None},
        "list": [1, f"token={SENTINEL}", {"password": 5}],
        "seed": 0,
    }
    assert redact_settings(settings) == {
        "model": {"name": "bert", "token": "***", "pad_token": "[PAD]"},
        "data": {"path": "https://***@host/x", "token": None},
        "list": [1, "token=***", {"password": "***"}],
        "seed": 0,
    }


def test_a_file_is_redacted(tmp_path):
    redact_file(tmp_path / "nothing")
    path = tmp_path / "multirun.yaml"
    path.write_text(f"task:\n  - +model.token={SENTINEL}\nseed: 0\n")
    redact_file(path)
    assert path.read_text() == "task:\n  - +model.token=***\nseed: 0\n"


def test_output_is_redacted_and_stays_a_stream(monkeypatch):
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    redact_output()
    print(f"token={SENTINEL}", flush=True)
    sys.stderr.writelines([f"https://me:{SENTINEL}@host\n"])
    assert (out.getvalue(), err.getvalue()) == ("token=***\n", "https://***@host\n")
    assert sys.stdout.isatty() is False


# Whole runs.

SECRETS = {
    "WANDB_API_KEY": "s3ntinel-wandb-" + "w" * 25,
    "HF_TOKEN": "hf_s3ntinelHub" + "h" * 20,
    "HUGGING_FACE_HUB_TOKEN": "hf_s3ntinelOld" + "o" * 20,
    "HTTPS_PROXY": "http://me:s3ntinel-proxy@127.0.0.1:9",
    "WANDB_BASE_URL": "http://me:s3ntinel-base@127.0.0.1:9",
}
# An unknown setting, and one that accepts any text.
TOKEN, URL = "model.token=s3ntinel-override", "logger.name='https://me:s3ntinel-url@host/x'"


@pytest.fixture(scope="module")
def inputs(inputs: list[str]) -> list[str]:
    return [*inputs, "trainer.max_steps=4"]


@pytest.fixture
def secrets(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def files_with_a_secret(folder: Path) -> list[str]:
    found = [path for path in folder.rglob("*") if path.is_file() and SENTINEL.encode() in path.read_bytes()]
    return [str(path.relative_to(folder)) for path in found]


WANDB_FILE = "wandb/offline-run-*/run-*.wandb"


@pytest.mark.first
@pytest.mark.runs
def test_no_file_of_a_run_has_a_secret(inputs, secrets, tmp_path, monkeypatch, capfd):
    repository = tmp_path / "repository"
    subprocess.run(["git", "init", "-q", repository], check=True)
    remote = "https://me:s3ntinel-git@example.org/x.git"
    subprocess.run(["git", "-C", repository, "remote", "add", "origin", remote], check=True)
    monkeypatch.chdir(repository)
    folder = repository / "out"
    overrides = [*inputs, URL, "logger.tags=['token=s3ntinel-tag']", "logger.mode=offline", f"output_dir={folder}"]
    # wandb records sys.argv.
    monkeypatch.setattr(sys, "argv", ["train.py", *overrides, f"+{TOKEN}"])
    train.guarded_run(compose_settings(overrides))
    assert {"compact", "config.yaml", "csv", "metrics.json", "report", "wandb"} <= set(os.listdir(folder))
    # wandb may still be writing after finish() has returned.
    end = time.monotonic() + 20
    while time.monotonic() < end and not any(path.stat().st_size > 1000 for path in folder.glob(WANDB_FILE)):
        time.sleep(0.1)
    assert list(folder.glob(WANDB_FILE))
    assert files_with_a_secret(folder) == []
    assert SENTINEL not in "".join(capfd.readouterr())
    assert "name: https://***@host/x" in (folder / "config.yaml").read_text()


@pytest.mark.parametrize("error", ["of Hydra", "of the program"])
def test_no_error_shows_a_secret(inputs, secrets, tmp_path, monkeypatch, error):
    # Hydra prints the overrides on errors.
    token = TOKEN if error == "of Hydra" else f"+{TOKEN.replace('model.', 'paths.')}"
    overrides = [*inputs, URL, token, f"output_dir={tmp_path / 'out'}"]
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "argv", ["train.py", *overrides])
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    redact_output()

    def fail(cfg, *_, **__):
        raise RuntimeError(f"{cfg['logger']['name']} did not answer")

    monkeypatch.setattr(train, "run", fail)
    with pytest.raises(SystemExit):
        train.main()
    said = out.getvalue() + err.getvalue()
    assert ("+model.token=***" if error == "of Hydra" else "RuntimeError: https://***@host/x did not answer") in said
    assert SENTINEL not in said


@pytest.mark.runs
def test_the_output_and_files_of_a_sweep_show_no_secret(inputs, secrets, tmp_path):
    process = run_command(["-m", *inputs, f"+{TOKEN}", "seed=0,1", "output_dir=sweep"], cwd=tmp_path)
    assert process.returncode == 1
    assert "unexpected keyword argument 'token'" in process.stderr
    assert "model.token=***" in (tmp_path / "sweep" / "multirun.yaml").read_text()
    assert files_with_a_secret(tmp_path) == []
    assert SENTINEL not in process.stdout + process.stderr
