"""The report of a run as one HTML file that needs no network."""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from gating.report.charts import charts_of
from gating.report.history import History
from gating.report.layers import frames_of, moved_choice, panels_of
from gating.report.machine import machine, versions
from gating.report.results import RunResults
from gating.report.rows import SHOWN
from gating.report.score import Score
from gating.storage.files import replacing_file
from gating.units import UNITS

__all__ = ["RunPage", "Runtime", "write_page"]

# Tasks of pipelines, by the Auto class of a model.
_PIPELINES = {
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForImageClassification": "image-classification",
}


class _Tile(NamedTuple):
    """A headline number."""

    name: str
    value: str
    note: str


class Runtime(NamedTuple):
    """A runtime that a model is exported to.

    Attributes:
        name: Its name.
        command: Command that serves the model or exports it; empty where the runtime does not run it.
        reason: The reason for which it does not.
    """

    name: str
    command: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class RunPage(RunResults):
    """Contents of the page of a run: its results and the ways to use the model.

    Attributes:
        title: Title of the page.
        config: Settings of the run as YAML, without secrets.
        compact: Folder of the compact model.
        auto_class: Name of the Auto class that loads it.
        is_stock: Whether it loads without further code.
        runtimes: Runtimes that run it, and those that do not.
        samples: Texts that it generated, by label.
        is_in_sweep: Whether the run is a job of a sweep.
        date: Date of the run.
    """

    title: str
    config: str
    compact: Path
    auto_class: str
    is_stock: bool = False
    runtimes: Sequence[Runtime] = ()
    samples: Sequence[Mapping[str, str]] = ()
    is_in_sweep: bool = False
    date: str = ""


def write_page(path: Path, page: RunPage) -> None:
    """Write the report of a run as one HTML file, whole or not at all; its folder is created if needed."""
    # Names, settings and samples come from users and models: everything is escaped.
    environment = Environment(
        loader=PackageLoader("gating", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    text = environment.get_template("page.html.j2").render(_context(page))
    with replacing_file(path) as new:
        # Names of files need not be valid text.
        new.write_text(text, encoding="utf-8", errors="replace")


def _context(page: RunPage) -> dict[str, object]:
    """Return the variables of the template."""
    score, stages = page.final_score, list(page.report.metrics)
    if page.dense:
        validation, test = (score.show(page.dense.get(f"{split}/{score.name}", math.nan)) for split in ("val", "test"))
        stages.insert(0, ("dense, another run", validation, test))
    return {
        "page": page,
        "lead": _lead(page),
        "tiles": _tiles(page),
        "stages": stages,
        **({} if page.is_dense else _map(page)),
        "charts": charts_of(page),
        "spent": {} if page.is_dense else page.history.spent,
        "amount": lambda value: _amount(value, page.history),
        "folder": json.dumps(str(page.compact), ensure_ascii=False),
        "trust": "" if page.is_stock else ", trust_remote_code=True",
        "pipeline": _PIPELINES.get(page.auto_class),
        "about": _about(),
    }


def _lead(page: RunPage) -> str:
    """Return the outcome of the run in a sentence or two."""
    summary = page.summary
    if page.is_dense:
        return (
            f"A dense run of {page.total_steps:,} steps: no gates, every head stays. Its {page.final_score.name} is "
            "the reference for runs that remove heads or neurons."
        )
    removed = [
        f"{before - after:,.0f} of {before:,.0f} {SHOWN[name][0]}"
        for name, (before, after) in summary.sizes.items()
        if name in (*UNITS, "layers") and after < before
    ]
    recovery = page.total_steps - page.search_steps
    return (
        f"{' and '.join(removed) or 'No unit'} {'was' if not removed else 'were'} removed after a search of "
        f"{page.search_steps:,} steps, which ended because {summary.search['search_ended']}. "
        + (f"The compact model was then trained for {recovery:,} steps." if recovery else "No recovery followed.")
    )


def _tiles(page: RunPage) -> list[_Tile]:
    """Return the headline numbers: units, parameters, speed and score."""
    tiles = []
    for name in (*UNITS, "parameters"):
        before, after = page.summary.sizes.get(name, (0, 0))
        if before:
            fewer = f"of {_short(before)}: {100 * (1 - after / before):.0f} % fewer" if after < before else "all kept"
            tiles.append(_Tile(SHOWN[name][0], _short(after), fewer))
    if (times := page.summary.latency) is not None:
        now, then = (f"{1e3 * seconds:.1f} ms" for seconds in (times.after, times.before))
        if not page.is_dense:
            tiles.append(_Tile("speed-up", f"{times.speedup:.2f}x", f"{times.words}: {now}, before {then}"))
        else:
            tiles.append(_Tile("latency", now, times.words))
    score = page.final_score
    for split, title in (("test", "test"), ("val", "validation")):
        value = page.final.get(f"{split}/{score.name}", math.nan)
        if not math.isnan(value) or split == "val":
            dense = page.reference.get(f"{split}/{score.name}", math.nan)
            tiles.append(_Tile(f"{title} {score.name}", score.show(value), _against(value, dense, score)))
            break
    return tiles


def _about() -> dict[str, object]:
    """Return the machine and the versions by their names."""
    about = {"machine": machine(), "threads": torch.get_num_threads(), "Python": platform.python_version()}
    with suppress(PackageNotFoundError):  # A checkout need not be installed.
        about["head-gating"] = version("head-gating")
    return about | versions()


def _amount(value: float, history: History) -> str:
    """Return a number of open units, or their share of the cost, as text; a dash for NaN."""
    if math.isnan(value):
        return "-"
    return f"{100 * value:.1f} %" if history.quantity == "cost" else f"{value:,.1f}"


def _against(value: float, dense: float, score: Score) -> str:
    if math.isnan(dense + value):
        return ""
    points = " points" if score.unit.strip() == "%" else score.unit
    return f"{score.scale * (value - dense):+.2f}{points} to dense ({score.show(dense)})"


def _short(number: float) -> str:
    """Return a number with three digits or more and a letter for its size.

    Example:
        >>> _short(72), _short(9216), _short(22_715_141)
        ('72', '9,216', '22.7 M')
    """
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.1f} {letter}"
    return f"{number:,.0f}"


def _map(page: RunPage) -> dict[str, object]:
    """Return the maps of heads and of feed-forward blocks, and the frames of the slider."""
    history, kept = page.history, [] if page.history.quantity == "neurons" else page.kept
    neurons = [] if page.history.quantity == "heads" else page.neurons
    heads, widths = panels_of(kept), panels_of(neurons)
    frames = frames_of(
        page,
        kept=[block for panel in heads for _, block in panel.rows],
        neurons=[block for panel in widths for _, block in panel.rows],
    )
    shown = [asdict(frame) for frame in frames]
    return {"heads": heads, "widths": widths, "frames": shown, "moved": moved_choice(history, kept)}
