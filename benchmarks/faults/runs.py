"""Processes that run train.py and are killed on the way."""

import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

__all__ = ["Kill", "Runs"]

_PATIENCE = 600  # Seconds after which something hangs.


@dataclass(frozen=True)
class Kill:
    """A moment and a signal.

    Attributes:
        batch: Training batch to wait for, counted from 1 in the process; 0 for its beginning.
        delay: Seconds to wait then.
        by: The signal.
    """

    batch: int
    delay: float
    by: signal.Signals

    @classmethod
    def at_random(cls, chance: random.Random, *, batches: int, seconds: float) -> "Kill":
        """Choose one for a run of so many training batches and seconds."""
        by = signal.SIGTERM if chance.random() < 0.25 else signal.SIGKILL
        if chance.random() < 0.25:
            return cls(0, seconds * chance.random(), by)
        return cls(chance.randint(1, batches), 0.05 * chance.random(), by)


class Runs:
    """Processes that run ``train.py`` and can be killed, without importing everything again for each."""

    def __init__(self, inputs: Sequence[str]) -> None:
        """Args: ``inputs`` are the settings that all runs have."""
        self._inputs = list(inputs)
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["train", "tiny_run"])

    def run(self, folder: Path, *settings: str, kill: Kill | None = None) -> tuple[int, int, float]:
        """Run once.

        Args:
            folder: The run's folder.
            settings: Further settings.
            kill: When to send a signal; None to let it end.

        Returns:
            The exit code, negative for the number of a signal, the number of training batches, and the seconds it took.
        """
        is_dense = "objective=none" in settings
        inputs = [setting for setting in self._inputs if not (is_dense and setting.startswith("objective."))]
        overrides = [*inputs, f"output_dir={folder}", *settings]
        reader, writer = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_run, args=(overrides, folder.with_suffix(".txt"), writer))
        process.start()
        writer.close()
        batches = reader.recv()  # It begins now.
        start = time.perf_counter()
        with contextlib.suppress(EOFError):
            while kill is None or batches < kill.batch:
                batches = reader.recv()
        if kill is not None:
            process.join(kill.delay)
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, kill.by)
        process.join(_PATIENCE)
        if process.is_alive():
            process.kill()
            raise TimeoutError(f"The run in {folder} is still under way after {_PATIENCE} s.")
        assert process.exitcode is not None
        return process.exitcode, batches, time.perf_counter() - start


def _run(overrides: list[str], log: Path, writer: Any) -> None:
    """Run as ``python train.py`` does, in a process that has everything imported."""
    import train
    from gating.training.module import FineTuning
    from tests.support.tiny_run import compose_settings

    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    torch.set_num_threads(1)
    training_step, counted = FineTuning.training_step, itertools.count(1)

    def step(self: FineTuning, batch: Any, batch_idx: int) -> torch.Tensor:
        writer.send(next(counted))
        return training_step(self, batch, batch_idx)

    FineTuning.training_step = step  # type: ignore[method-assign]
    settings = compose_settings(overrides)
    with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        writer.send(0)
        train.guarded_run(settings)
