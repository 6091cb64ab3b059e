"""Progress in a log: a line wherever it would be silent, whatever a step redirects."""

import io
import time
from contextlib import redirect_stdout

from gating.tracking import progress
from gating.tracking.progress import Progress, watched


def test_a_log_is_never_silent_for_long(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_QUIET_S", 0.1)
    progress._start_telling.cache_clear()
    with Progress("Removal"), Progress("Timing", seconds=60), redirect_stdout(io.StringIO()):
        time.sleep(0.4)
    for _ in watched(range(3), title="validation", total=3, unit="batches"):
        time.sleep(0.3)
    monkeypatch.undo()
    lines = capsys.readouterr().out.splitlines()
    assert {"Timing: 00:59 left", "validation: 0 of 3 batches, 00:00 so far"} <= set(lines)
    assert any(line.startswith("validation: 2 of 3 batches, 00:00 left") for line in lines)
    assert not any(line.startswith("Removal") for line in lines)


def test_steps_tell_their_status_and_the_time_left(monkeypatch):
    with Progress("search", 100, unit="steps", done=40) as search:
        monkeypatch.setattr(time, "monotonic", lambda: search._began + 30)
        assert search.line() == "search: 40 of 100 steps, 00:30 so far"
        search.update(10, status="loss 0.512")
        assert search.line() == "search: 50 of 100 steps, 02:30 left, loss 0.512"
