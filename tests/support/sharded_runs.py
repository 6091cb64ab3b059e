"""Whole runs in several processes that the tests start, and what is compared between runs."""

import contextlib
import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from safetensors.torch import load_file

import train
from gating.run import execute
from gating.training import checkpoints
from gating.training.module import FineTuning
from tests.support.in_ranks import run_in_ranks
from tests.support.tiny_run import compose_settings

# One process is the reference; the others have a share of its batch.
BATCH = 12
ONE = ["trainer.accelerator=cpu", "trainer.precision=32-true", f"data.batch_size={BATCH}", "output_dir=one"]


def sharded(num_ranks: int) -> list[str]:
    """Return the settings of a sharded run."""
    return [
        "trainer=fsdp",
        "trainer.accelerator=cpu",
        "trainer.precision=32-true",
        f"trainer.devices={num_ranks}",
        f"data.batch_size={BATCH // num_ranks}",
        "output_dir=out",
    ]


def fit(settings: list[str], folder: Path, happens: str = "", has_room: bool = True) -> str:
    """Run in this rank as the command does, and return what it prints.

    Args:
        settings: Settings of the run.
        folder: The working folder.
        happens: ``RANK PLACE NUMBER``: this rank is killed at a training batch (``batch``) or in the middle of writing
            a checkpoint (``write``), counted from 1; or at the ``removal``, or the ``export``.
        has_room: Whether rank 0 says that it has room for copies of the whole model.
    """
    os.chdir(folder)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        if happens:
            _let_it_happen(patch, *happens.split())
        if not has_room:
            patch.setattr("gating.run.execute.has_room_for", lambda _: False)
        train.guarded_run(compose_settings([*settings, "logger=csv"]))
    return out.getvalue()


def _let_it_happen(patch: pytest.MonkeyPatch, which: str, place: str, number: str = "1") -> None:
    if str(torch.distributed.get_rank()) != which:
        return
    owner, name = {
        "batch": (FineTuning, "training_step"),
        "write": (checkpoints, "write_checkpoint"),
        "removal": (execute, "remove"),
        "export": (execute, "export"),
    }[place]
    wrapped, calls = getattr(owner, name), []

    def count(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        return wrapped(*args, **kwargs)

    patch.setattr(owner, name, count)


# Entries of a configuration that depend on the form of the folder.
_OF_THE_FORM = (
    "auto_map",
    "dtype",
    "sha256",
    "transformers_weights",
)


def run_both(
    settings: list[str], folder: Path, *, num_ranks: int = 2, has_room: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run in one process and in several, and return the results of both."""
    run_in_ranks(fit, [*settings, *ONE], folder, num_ranks=1)
    run_in_ranks(fit, [*settings, *sharded(num_ranks)], folder, "", has_room, num_ranks=num_ranks)
    return results(folder / "one"), results(folder / "out")


def results(folder: Path) -> dict[str, Any]:
    """Return weights, record and metrics of a finished run."""
    numbers = json.loads((folder / "metrics.json").read_text())
    # A model without room for copies is saved as no stock model, as that of one process may be.
    places = [folder / "compact" / name for name in ("head_gating.json", "config.json")]
    tables = [json.loads(place.read_text()) for place in places]
    config = next(table for table in tables if "head_gating" in table)
    for name in _OF_THE_FORM:
        config.pop(name, None)
    record = {name: value for name, value in config.pop("head_gating").items() if name not in ("sha256", "canary")}
    weights: dict[str, torch.Tensor] = {}
    for path in sorted((folder / "compact").glob("*.safetensors")):
        weights |= load_file(path)
    return {
        "weights": weights,
        "record": record,
        "config": config,
        "metrics": {name: value for name, value in numbers.items() if name.startswith(("val/", "test/", "search/"))},
    }


def check_equal(one: dict[str, Any], other: dict[str, Any], *, tolerance: float = 1e-5) -> None:
    """Check that two runs kept the same heads and neurons, with equal weights and metrics but for rounding."""
    assert one["record"] == other["record"]
    assert one["config"] == other["config"]
    assert one["weights"].keys() == other["weights"].keys()
    for name, weight in one["weights"].items():
        torch.testing.assert_close(other["weights"][name], weight, atol=tolerance, rtol=0, msg=name)
    for name, value in one["metrics"].items():
        assert other["metrics"][name] == pytest.approx(value, rel=1e-4), name
