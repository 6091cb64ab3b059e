"""Lines of the comparison: models of all-MiniLM-L6-v2 that are smaller, each by a command."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.embeddings.texts import ABOUT, TRAIN, VALIDATION

PYTORCH = "PyTorch"
# Runtimes of exports -> whether their matrices have 8 bits.
INT8 = {"ONNX Runtime": False, "ONNX Runtime, int8": True}
RUNTIMES = (PYTORCH, *INT8)
# Texts of a timed batch, and tokens of each.
SIZES = ((1, 16), (32, 32), (32, 128))

# The example as it is, without the articles that are evaluated among its texts.
_EXAMPLE = ("experiment=embeddings", "data.held_out=0.2", "data.seed=0")
# The same steps for all lines but the example. All else is that of the experiment.
RECIPE = (
    "experiment=embeddings",
    "data=files",
    "data.batch_size=12",
    "data.max_length=32",
    "task.negations=0.1",
    "trainer.max_steps=5000",
    "trainer.precision=bf16-mixed",
)


class Line(NamedTuple):
    """A line of the table.

    Attributes:
        title: Its title.
        settings: Its settings of train.py after those of the recipe; None for the dense model, which is not trained.
        runtimes: Runtimes in which it is measured.
        recipe: Settings before its own; those of other recipes have texts of their own.
    """

    title: str
    settings: tuple[str, ...] | None
    runtimes: tuple[str, ...] = (PYTORCH,)
    recipe: tuple[str, ...] = RECIPE


def _ours(speedup: float, runtimes: tuple[str, ...] = RUNTIMES) -> Line:
    return Line(f"heads and neurons, {speedup:g}x", (f"objective.speedup={speedup:g}",), runtimes)


def _first(layers: int) -> Line:
    return Line(f"first {layers} layers", ("objective=none", f"+model.config.num_hidden_layers={layers}"))


LINES: Mapping[str, Line] = {
    "dense": Line("all-MiniLM-L6-v2", None, RUNTIMES),
    "ours-2": _ours(2),
    "first-3": _first(3),
    "ours-3": _ours(3),
    "first-2": _first(2),
    "example": Line("`experiment=embeddings`, 4,000 steps", (), RUNTIMES, recipe=_EXAMPLE),
}


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return the line, seed and runtime of a result, and the settings that it was trained with."""
    return row["line"], row["seed"], row["runtime"], row["settings"]


def wanted(name: str, seed: int | None) -> list[dict[str, Any]]:
    """Return the beginning of the results of a line, one for each runtime; the dense model has no seed.

    Exports are measured with seed 0 alone.
    """
    line = LINES[name]
    runtimes = (PYTORCH,) if seed else line.runtimes
    settings = None if line.settings is None else " ".join((*line.recipe, *line.settings))
    return [{"line": name, "seed": seed, "runtime": runtime, "settings": settings} for runtime in runtimes]


def settings_of(name: str, seed: int, *, texts: Path, folder: Path) -> list[str]:
    """Return the settings of train.py for a line and a seed; ``texts`` is the folder of the training texts."""
    line = LINES[name]
    assert line.settings is not None
    files = [f"data.train={texts.resolve() / TRAIN}", f"data.validation={texts.resolve() / VALIDATION}"]
    own_texts = [*files, f"data.about='{_quoted(ABOUT)}'"] if line.recipe is RECIPE else []
    return [*line.recipe, *own_texts, *line.settings, f"seed={seed}", f"output_dir={folder}"]


def _quoted(text: str) -> str:
    return text.replace("'", "\\'")
