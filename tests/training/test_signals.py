import os
import signal
import threading

import pytest

from gating.training.signals import DeferredSignals, Stopped, stop_on_signals

HEEDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", HEEDED)
def test_a_signal_stops_what_is_going_on_and_handlers_come_back(number):
    before = [signal.getsignal(heeded) for heeded in HEEDED]
    with pytest.raises(Stopped) as caught, stop_on_signals():
        send(number)
    assert caught.value.exit_code == 128 + number
    assert [signal.getsignal(heeded) for heeded in HEEDED] == before


def test_signals_are_noted_instead():
    with stop_on_signals():
        noted = DeferredSignals()
        send(signal.SIGTERM)
        send(signal.SIGTERM)  # Launchers send it more than once.
        assert noted.stop == signal.SIGTERM
        noted.end()
        with pytest.raises(Stopped):
            send(signal.SIGTERM)


def test_the_second_ctrl_c_is_not_waited_for():
    with stop_on_signals():
        noted = DeferredSignals()
        send(signal.SIGINT)
        with pytest.raises(Stopped):
            send(signal.SIGINT)
        noted.end()


def test_notice_of_a_scheduler_is_kept_for_later(monkeypatch):
    called = []
    before = signal.signal(signal.SIGUSR1, lambda *_: called.append("handled"))
    try:
        noted = DeferredSignals()
        send(signal.SIGUSR1)
        assert noted.requeue == signal.SIGUSR1
        assert called == []
        noted.handle_requeue()
        assert (noted.requeue, called) == (0, ["handled"])
        noted.end()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_what_is_to_be_ignored_is_ignored():
    """As under nohup, or for a job in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signals():
            noted = DeferredSignals()
            send(signal.SIGINT)
            assert noted.stop == 0
            noted.end()
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_leave_signals_alone():
    failed = []

    def work() -> None:
        try:
            with stop_on_signals():
                DeferredSignals().end()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []
