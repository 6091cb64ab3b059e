"""Signals raise, are deferred or are ignored, handlers are restored, and files in the making are removed."""

import os
import signal
import threading
from pathlib import Path

import pytest

from gating.storage.files import replacing_file
from gating.training.signals import DeferredSignals, Stopped, stop_on_signals
from tests.storage.test_files import make_result, replacing

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows ends a process instead of a signal to it.")
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_raises_and_previous_handlers_are_restored(number):
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    with pytest.raises(SystemExit) as caught, stop_on_signals():
        send(number)
    assert caught.value.code == 128 + number
    assert "SIG" in str(caught.value)
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == before


def test_deferred_signals_wait():
    with stop_on_signals():
        deferred = DeferredSignals()
        send(signal.SIGTERM)
        send(signal.SIGTERM)  # Launchers send it more than once.
        assert deferred.number == signal.SIGTERM
        deferred.restore()
        with pytest.raises(Stopped):
            send(signal.SIGTERM)


def test_the_second_ctrl_c_raises_at_once():
    with stop_on_signals():
        deferred = DeferredSignals()
        send(signal.SIGINT)
        with pytest.raises(Stopped):
            send(signal.SIGINT)
        deferred.restore()


def test_ignored_signals_stay_ignored():
    """As under nohup, or for a job in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signals():
            deferred = DeferredSignals()
            send(signal.SIGINT)
            assert deferred.number == 0
            deferred.restore()
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_keep_the_signal_handlers():
    failed = []

    def target() -> None:
        try:
            with stop_on_signals():
                DeferredSignals().restore()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    assert failed == []


def test_a_signal_while_a_file_is_written_leaves_nothing_behind(tmp_path):
    with pytest.raises(Stopped), stop_on_signals(), replacing_file(tmp_path / "file") as new:
        new.write_text(f"half{send(signal.SIGTERM)}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("call", "left"), [(1, "old"), (2, "new")])
def test_a_signal_between_two_renames_leaves_one_whole_folder(call, left, tmp_path, monkeypatch):
    make_result(tmp_path / "there")
    rename, calls = Path.rename, []

    def stopped(*paths: Path) -> None:
        rename(*paths)
        calls.append(paths)
        if len(calls) == call:
            send(signal.SIGINT)

    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises(Stopped), stop_on_signals(), replacing(tmp_path / "there") as folder:
        (folder / "model.safetensors").write_text("new")
    assert (tmp_path / "there" / "model.safetensors").read_text() == left
