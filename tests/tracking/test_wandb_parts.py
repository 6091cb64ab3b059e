"""A W&B run that several processes log to, one after another, has each step once."""

import subprocess
from pathlib import Path

import pytest
import wandb

from gating.tracking.loggers import build_loggers, close_wandb
from gating.tracking.position import log_position, return_to
from gating.tracking.wandb_parts import cut_off, next_row
from tests.support.fake_wandb import KEY, fake_server
from tests.support.wandb_rows import WANDB, rows_of


@pytest.fixture(autouse=True)
def closed(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    close_wandb(failed=True)
    wandb.teardown()


def process(folder: Path, values, *, position=None, mode="offline", checkpoint: int = 0) -> tuple[list[Path], dict]:
    """Log values in a process of a run; return the parts, and the position after the value number ``checkpoint``."""
    loggers, found = build_loggers(folder, mode=mode, resume=position is not None), {}
    return_to(loggers, position or {})
    for count, value in enumerate(values, start=1):
        for logger in loggers:
            logger.log_metrics({"x": float(value)}, step=value)
        if count == checkpoint:
            found = log_position(loggers)
    for logger in loggers:
        logger.save()
    return close_wandb(failed=False), found


def steps_of(parts: list[Path]) -> list[tuple[int, float]]:
    return [(row["_step"], row["x"]) for row in rows_of(parts) if "x" in row]


@pytest.mark.runs
def test_what_was_logged_after_the_checkpoint_is_there_once(tmp_path):
    _, first = process(tmp_path, range(8), checkpoint=3)
    parts, second = process(tmp_path, range(3, 9), position=first, checkpoint=2)
    assert len(parts) == 2
    assert steps_of(parts) == [(step, step) for step in range(9)]
    parts, _ = process(tmp_path, range(5, 12), position=second)
    assert len(parts) == 3
    assert steps_of(parts) == [(step, step) for step in range(12)]


@pytest.mark.runs
def test_a_run_that_begins_again_before_its_first_checkpoint_has_each_step_once(tmp_path):
    process(tmp_path, range(4))
    parts, _ = process(tmp_path, range(6), position={})
    assert steps_of(parts) == [(step, step) for step in range(6)]


def test_many_rows_span_blocks_of_the_file_and_are_cut_at_any_of_them(tmp_path):
    loggers = build_loggers(tmp_path, mode="offline")
    for step in range(60):
        loggers[0].log_metrics({f"{'name' * 30}{i}": float(i) for i in range(20)}, step=step)
    (part,) = close_wandb(failed=False)
    rows_of([part])
    assert next(part.glob("run-*.wandb")).stat().st_size > 3 * 2**15
    for rows in (59, 42, 41, 3, 0):
        cut_off(part, rows=rows)
        assert next_row(part) == rows


def test_a_torn_record_at_the_end_is_no_row(tmp_path):
    parts, _ = process(tmp_path, range(5))
    rows_of(parts)
    (file,) = parts[0].glob("run-*.wandb")
    cut_off(parts[0], rows=4)
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 60)
    assert next_row(parts[0]) == 3


def test_the_run_of_an_earlier_run_in_the_folder_is_left_alone(tmp_path):
    old, _ = process(tmp_path, range(5))
    build_loggers(tmp_path, mode="disabled")  # a new run without W&B
    new, _ = process(tmp_path, range(3), position={"rows": 0})
    assert old[0] not in new
    assert [step for step, _ in steps_of(old)] == [0, 1, 2, 3, 4]


@pytest.mark.runs
def test_a_process_without_wandb_in_between_takes_no_row_away(tmp_path):
    _, first = process(tmp_path, range(4), checkpoint=4)
    _, second = process(tmp_path, range(4, 7), position=first, mode="disabled", checkpoint=3)
    parts, _ = process(tmp_path, range(7, 9), position=second)
    assert [x for _, x in steps_of(parts)] == [0, 1, 2, 3, 7, 8]
    steps = [step for step, _ in steps_of(parts)]
    assert steps == sorted(set(steps))


@pytest.mark.runs
@pytest.mark.parametrize("is_uploaded_between", [pytest.param(False, marks=pytest.mark.first), True])
def test_one_command_uploads_all_parts_with_each_step_once(is_uploaded_between, tmp_path, monkeypatch):
    with fake_server() as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        parts, position = process(tmp_path, range(6), checkpoint=3)
        rows_of(parts)
        if is_uploaded_between:
            upload(parts)
        parts, _ = process(tmp_path, range(3, 9), position=position)
        rows_of(parts)
        upload(parts)
        sent = [(row["_step"], row["x"]) for row in server.history()]
    assert sent == [(step, step) for step in range(9)]


def upload(parts: list[Path]) -> None:
    # In a folder of the test: the command leaves a folder of its own.
    command = [WANDB, "sync", *map(str, parts)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=parts[0].parents[1])
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_run_that_goes_on_online_sends_no_row_twice(tmp_path, monkeypatch):
    with fake_server() as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        _, position = process(tmp_path, range(6), checkpoint=3, mode="online")
        _, _ = process(tmp_path, range(3, 9), position=position, mode="online")
        sent = [(row["_step"], row["x"]) for row in server.history()]
    assert sent == [(step, step) for step in range(9)]
