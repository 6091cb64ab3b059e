"""Runs in this process that are interrupted, and their checkpoints."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import train
from gating.training.module import FineTuning
from tests.support.tiny_run import compose_settings


class Interrupted(Exception):  # noqa: N818
    """Stand-in for the end of a process."""


def interrupt() -> None:
    raise Interrupted


def run_in(folder: Path, inputs: list[str], *settings: str) -> None:
    """Run to the end."""
    overrides = [*inputs, "logger=csv", f"output_dir={folder}", *settings]
    train.run(compose_settings(overrides), overrides)


def end_of(folder: Path, inputs: list[str], *settings: str) -> int | str | None:
    """Run as the command does, and return its exit code."""
    overrides = [*inputs, "logger=csv", f"output_dir={folder}", *settings]
    try:
        train.guarded_run(compose_settings(overrides), overrides)
    except SystemExit as end:
        return end.code
    return 0


@contextlib.contextmanager
def at_batch(number: int, action: Callable[[], object]) -> Iterator[list[int]]:
    """Do something before the forward pass of a training batch, counted from 1 over all phases of this process.

    Yields:
        The steps of the run at which batches were trained.
    """
    steps: list[int] = []
    training_step = FineTuning.training_step

    def step(self, batch, batch_idx):
        steps.append(self.step_in_run)
        if len(steps) == number:
            action()
        return training_step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FineTuning, "training_step", step)
        yield steps


def steps_of_checkpoints(folder: Path, phase: str) -> list[int]:
    """Return after which steps there is a checkpoint."""
    paths = (folder / "checkpoints" / phase).glob("step-*.ckpt")
    return sorted(int(path.stem.partition("-")[2]) for path in paths)
