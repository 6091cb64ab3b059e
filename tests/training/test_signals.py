"""Signals raise, are deferred or are ignored, and handlers are restored."""

import os
import signal
import threading

import pytest

from gating.training.signals import DeferredSignals, Stopped, stop_on_signals

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_raises_and_previous_handlers_are_restored(number):
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    with pytest.raises(Stopped) as caught, stop_on_signals():
        send(number)
    assert caught.value.exit_code == 128 + number
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == before


def test_deferred_signals_do_not_raise():
    with stop_on_signals():
        deferred = DeferredSignals()
        send(signal.SIGTERM)
        send(signal.SIGTERM)  # Launchers send it more than once.
        assert deferred.stop == signal.SIGTERM
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


def test_the_requeue_signal_is_deferred_and_handled_on_request(monkeypatch):
    called = []
    before = signal.signal(signal.SIGUSR1, lambda *_: called.append("handled"))
    try:
        deferred = DeferredSignals()
        send(signal.SIGUSR1)
        assert deferred.requeue == signal.SIGUSR1
        assert called == []
        deferred.handle_requeue()
        assert (deferred.requeue, called) == (0, ["handled"])
        deferred.restore()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_ignored_signals_stay_ignored():
    """As under nohup, or for a job in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signals():
            deferred = DeferredSignals()
            send(signal.SIGINT)
            assert deferred.stop == 0
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
