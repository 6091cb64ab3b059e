"""Sweeps in this process, and folders with the results of runs that were not trained."""

import contextlib
import functools
import io
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import yaml

import train
from gating.report.score import Score
from tests.support.tiny_run import checked_settings


class Ended(NamedTuple):
    """The end of a sweep: its exit code, and its output."""

    code: int | str | None
    out: str
    err: str


def run_sweep(folder: Path, *arguments: str) -> Ended:
    """Run a sweep as the command does."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    arguments = ("train.py", "-m", *arguments, f"output_dir={folder}")
    with (
        mock.patch.object(sys, "argv", [*arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            train.main()
        except SystemExit as end:
            code = end.code
    return Ended(code, out.getvalue(), err.getvalue())


_FOLDER = "/folder-of-the-run"


@functools.cache
def _settings_of(*overrides: str) -> str:
    """Return the settings of a run in the folder ``_FOLDER`` as the text of a file; there are none of its data."""
    given = ["data=files", "data.train=a.tsv", "logger=csv", *overrides, f"output_dir={_FOLDER}"]
    return yaml.safe_dump(checked_settings(given), sort_keys=False)


def write_run(folder: Path, *overrides: str, score: Score | None = None, **numbers: Any) -> Path:
    """Write the settings and numbers of a finished run.

    Args:
        folder: Folder of the run.
        overrides: Overrides of its command.
        score: Its metric; by default accuracy.
        numbers: Its numbers in place of those of a dense run, with ``_`` for ``/``.
    """
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(_settings_of(*overrides).replace(_FOLDER, str(folder)))
    stored = {} if score is None else {"score": {"scale": score.scale, "unit": score.unit}}
    if score is not None:
        stored["score"]["higher_is_better"] = score.higher_is_better
    name = score.name if score else "accuracy"
    values = {
        "num_heads": 72,
        "num_neurons": 9216,
        "num_parameters_before": 100,
        "num_parameters": 100,
        "macs_before": 100,
        "macs": 100,
        "speedup": 1.0,
        "latency_ms_before": 10.0,
        "metric": name,
        "machine": "a CPU",
        "threads": 1,
        f"val/{name}": 0.9,
        f"test/{name}": 0.9,
    }
    given = {
        key.replace("val_", f"val/{name}").replace("test_", f"test/{name}"): value for key, value in numbers.items()
    }
    (folder / "metrics.json").write_text(json.dumps(values | stored | given))
    return folder
