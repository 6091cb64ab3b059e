"""Runs of train.py on a decoder: the search of a method, and the same healing for all."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.measuring import run_python

_ONE_ROUND = ("objective.share_per_round=1", "objective.schedule.start=0", "objective.schedule.end=1")
# The dense model is fine-tuned on the labels alone: it would be its own teacher.
_NO_SEARCH = ("objective=none", "optimizer.freeze=false", "distillation=none")
# Method -> settings, and the optimizer steps of its search; None where these are chosen.
METHODS: Mapping[str, tuple[tuple[str, ...], int | None]] = {
    "dense": (_NO_SEARCH, 0),
    "gates": (("objective.keep={share}",), None),
    "one-shot": (("objective=fisher", "objective.ranking.per=token", "objective.keep={share}", *_ONE_ROUND), 12),
    "random": (("objective=random", "optimizer.freeze=false", "objective.keep={share}", *_ONE_ROUND), 12),
    "first layers": (("objective=none", "optimizer.freeze=false", "+model.config.num_hidden_layers={layers}"), 0),
}


class Case(NamedTuple):
    """One run: a method, the share of the cost of all layers that it keeps, and its seed."""

    method: str
    share: float
    seed: int

    @property
    def folder(self) -> str:
        """Name of the folder of the run."""
        return f"{self.method.replace(' ', '-')}-{self.share:g}-{self.seed}"


def cases(methods: Sequence[str], shares: Sequence[float], seeds: Sequence[int]) -> Iterator[Case]:
    """Yield the runs, those of a seed one after another; the dense model has one share."""
    for seed in seeds:
        for method in methods:
            for share in (1.0,) if method == "dense" else shares:
                yield Case(method, share, seed)


def steps_of_search(method: str, *, chosen: int) -> int:
    """Return the number of optimizer steps of a method before the removal."""
    _, steps = METHODS[method]
    return chosen if steps is None else steps


def train(
    case: Case,
    folder: Path,
    *,
    data: Sequence[str],
    num_layers: int,
    search: int,
    healing: int,
    settings: Sequence[str],
) -> None:
    """Train a run, unless it is there; an unfinished one is resumed.

    Raises:
        RuntimeError: The run failed.
    """
    if (folder / "metrics.json").is_file():
        return
    own, _ = METHODS[case.method]
    layers = round(case.share * num_layers)
    options = [
        "experiment=smollm2",
        *(setting.format(share=case.share, layers=layers) for setting in own),
        *data,
        f"trainer.max_steps={search + healing}",
        *([f"recovery={healing / (search + healing)}"] if search else []),
        f"seed={case.seed}",
        "exports=[]",
        "logger=csv",
        "callbacks=none",
        # The benchmark evaluates the models itself.
        *("trainer.limit_val_batches=4", "trainer.limit_test_batches=4", "latency.max_seconds=20"),
        *("task.chat=false", "task.prompts=null", "task.num_samples=0"),
        *settings,
    ]
    run_python("train.py", *options, f"output_dir={folder}", "resume=auto", threads=1)
