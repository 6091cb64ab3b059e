"""Sections of the benchmark: the shapes that each measures, in calls for several processes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["SECTIONS", "WARM_UP", "Case", "full_cases", "quick_cases"]

SECTIONS = ("state", "steps", "removal", "growth", "loading")
# Width and number of layers of the model that is used before measurements of memory.
WARM_UP = (128, 2)
Shape = tuple[int, int]
_UNITS = (("heads",), ("heads", "neurons"))


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        section: One of :data:`SECTIONS`.
        shape: Width and number of layers of the model.
        processes: Number of processes.
        function: Module below this package and function that measures.
        arguments: Arguments of this function, besides the folders of models.
    """

    section: str
    shape: Shape
    processes: int
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def full_cases(sections: Sequence[str], processes: Sequence[int]) -> list[Case]:
    """Return the cases of sections; only the training state is counted for each number of processes."""
    first = processes[0]
    small: list[Shape] = [(256, 4), (512, 8), (1024, 8)]
    cases = [_state(shape, each) for each in processes for shape in [*small, (2048, 8)]]
    cases += [_steps(shape, first, rounds=7) for shape in [*small, (2048, 2)]]
    for shape, repeats in (((256, 4), 3), ((512, 8), 3), ((1024, 16), 1), ((2048, 22), 1)):
        cases += [_removal("removal", shape, first, units, repeats) for units in _UNITS]
    cases += [_removal("growth", (1024, layers), first, _UNITS[1], 3) for layers in (2, 4, 8, 16)]
    for shape in ((512, 8), (1024, 16), (2048, 22)):
        cases += [_loading(shape, first, sharded=sharded) for sharded in (True, False)]
    return [case for case in cases if case.section in sections]


def quick_cases(sections: Sequence[str], processes: Sequence[int]) -> list[Case]:
    """Return a small case or two of each section, all with the same number of processes."""
    first, shape = processes[0], (192, 2)
    cases = [_state(shape, first), _steps(shape, first, rounds=3, tokens=(1, 16))]
    cases += [_removal("removal", shape, first, _UNITS[1], 1)]
    cases += [_removal("growth", (192, layers), first, _UNITS[0], 1) for layers in (1, 2)]
    cases += [_loading(shape, first, sharded=sharded) for sharded in (True, False)]
    return [case for case in cases if case.section in sections]


def _state(shape: Shape, processes: int) -> Case:
    return Case("state", shape, processes, "training:count_state")


def _steps(shape: Shape, processes: int, *, rounds: int, tokens: tuple[int, int] = (4, 128)) -> Case:
    arguments = {"batch_size": tokens[0], "length": tokens[1], "rounds": rounds}
    return Case("steps", shape, processes, "training:time_steps", arguments)


def _removal(section: str, shape: Shape, processes: int, units: Sequence[str], repeats: int) -> Case:
    return Case(section, shape, processes, "removal:remove", {"units": list(units), "repeats": repeats})


def _loading(shape: Shape, processes: int, *, sharded: bool) -> Case:
    return Case("loading", shape, processes, "loading:load", {"sharded": sharded})
