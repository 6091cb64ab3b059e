"""The report of a run as one HTML file that needs no network."""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from gating.report.card import KeptHeads, KeptNeurons
from gating.report.charts import Chart, amount_chart, loss_charts, score_chart
from gating.report.curves import curves_of
from gating.report.history import History
from gating.report.layers import frames_of, moved_choice, panels_of
from gating.report.machine import machine, versions
from gating.report.score import Score
from gating.report.summary import Stage, Summary
from gating.storage.atomic import replacing_file

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


@dataclass(frozen=True)
class RunPage:
    """Contents of the page of a run.

    Attributes:
    XX: Observations of the run.
        summary: Measurements of the run.
        score: Score of the observations.
        final_score: Score of the tables and the headline.
        kept: The kept heads of each attention block.
        neurons: The kept neurons of each feed-forward block.
        search_steps: Step at which units were removed; 0 in a dense run.
        total_steps: Steps of the whole run.
        config: Settings of the run as YAML, without secrets.
        compact: Folder of the compact model.
        auto_class: Name of the Auto class that loads it.
        is_stock: Whether it loads without further code.
        runtimes: Runtimes that run it, and those that do not.
        samples: Texts that it generated, by label.
        dense: Metrics of a dense reference from another run, by the names ``val/NAME`` and ``test/NAME``.
        is_in_sweep: Whether the run is a job of a sweep.
        date: Date of the run.
        log: Rows of its log: values by their names, and the number of the step by ``step``.
    """

    title: str
    history: History
    summary: Summary
    score: Score
    final_score: Score
    kept: Sequence[KeptHeads]
    neurons: Sequence[KeptNeurons]
    search_steps: int
    total_steps: int
    config: str
    compact: Path
    auto_class: str
    is_stock: bool = False
    runtimes: Sequence[Runtime] = ()
    samples: Sequence[Mapping[str, str]] = ()
    dense: Mapping[str, float] = field(default_factory=dict)
    is_in_sweep: bool = False
    date: str = ""
    log: Sequence[Mapping[str, float]] = ()


def write_page(path: Path, page: RunPage) -> None:
    """Write the report of a run as one HTML file, whole or not at all.

    Args:
        path: Path of the file; its folder is created if needed.
        page: The contents.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = _environment().get_template("page.html.j2").render(_context(page))
    with replacing_file(path) as new:
        # Names of files need not be valid text.
        new.write_text(text, encoding="utf-8", errors="replace")


@cache
def _environment() -> Environment:
    # Names, settings and samples come from users and models: everything is escaped.
    environment = Environment(
        loader=PackageLoader("gating", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment


def _context(page: RunPage) -> dict[str, object]:
    """Return the variables of the template."""
    summary, is_dense = page.summary, not page.summary.search
    reference = _reference(page)
    report = summary.compact_report(page.final_score)
    stages = list(report.metrics)
    if page.dense:
        shown = [page.final_score.show(page.dense.get(f"{split}/{report.metric_name}", math.nan)) for split in _SPLITS]
        stages.insert(0, ("dense, another run", shown[0], shown[1]))
    return {
        "page": page,
        "title": page.title,
        "is_dense": is_dense,
        "lead": _lead(page),
        "tiles": _tiles(page, reference),
        "report": report,
        "stages": stages,
        "has_reference": bool(reference),
        "units": _units(page),
        **({} if is_dense else _map(page)),
        "charts": _charts(page, reference),
        "spent": {} if is_dense else page.history.spent,
        "latencies": summary.latencies,
        "observations": page.history.observations,
        "amount": lambda value: _amount(value, page.history),
        "folder": json.dumps(str(page.compact), ensure_ascii=False),
        "trust": "" if page.is_stock else ", trust_remote_code=True",
        "pipeline": _PIPELINES.get(page.auto_class),
        "about": _about(),
    }


_SPLITS = ("val", "test")


def _reference(page: RunPage) -> Mapping[str, float]:
    """Return the metrics of a dense model: of another run, or of the teacher of this one."""
    return page.dense or page.summary.metrics.get(Stage.DENSE, {})


def _units(page: RunPage) -> str:
    return "heads and neurons" if page.history.quantity == "cost" else page.history.quantity


def _lead(page: RunPage) -> str:
    """Return the outcome of the run in a sentence or two."""
    summary = page.summary
    if not summary.search:
        return (
            f"A dense run of {page.total_steps:,} steps: no gates, every head stays. Its {page.final_score.name} is "
            "the reference for runs that remove heads or neurons."
        )
    removed = [
        f"{before - after:,} of {before:,} {name}"
        for name, unit in (("attention heads", "heads"), ("feed-forward neurons", "neurons"))
        if (sizes := summary.sizes.get(unit)) and (before := int(sizes[0])) > (after := int(sizes[1]))
    ]
    recovery = page.total_steps - page.search_steps
    return (
        f"{' and '.join(removed) or 'No unit'} {'was' if not removed else 'were'} removed after a search of "
        f"{page.search_steps:,} steps, which ended because {summary.search['search_ended']}. "
        + (f"The compact model was then trained for {recovery:,} steps." if recovery else "No recovery followed.")
    )


def _tiles(page: RunPage, reference: Mapping[str, float]) -> list[_Tile]:
    """Return the headline numbers: units, parameters, speed and score."""
    sizes, tiles = page.summary.sizes, []
    for unit, name in (("heads", "attention heads"), ("neurons", "feed-forward neurons"), ("parameters", "parameters")):
        before, after = sizes.get(unit, (0, 0))
        if before:
            fewer = f"of {_short(before)}: {100 * (1 - after / before):.0f} % fewer" if after < before else "all kept"
            tiles.append(_Tile(name, _short(after), fewer))
    if (times := page.summary.latency) is not None:
        now, then = (f"{1e3 * seconds:.1f} ms" for seconds in (times.after, times.before))
        if page.summary.search:
            tiles.append(_Tile("speed-up", f"{times.speedup:.2f}x", f"{times.words}: {now}, before {then}"))
        else:
            tiles.append(_Tile("latency", now, times.words))
    score, final = page.final_score, page.summary.metrics.get(Stage.COMPACT, {})
    for split, title in (("test", "test"), ("val", "validation")):
        value = final.get(f"{split}/{score.name}", math.nan)
        if not math.isnan(value) or split == "val":
            dense = reference.get(f"{split}/{score.name}", math.nan)
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
    known = {name for values in history.gate_values[-1:] for name in values}
    if history.quantity == "heads" and known.isdisjoint(name for name, _, _ in kept):
        # Runs of earlier versions named blocks otherwise, in the same order.
        names = [name for name, _, _ in kept] if len(known) == len(kept) else []
        renamed = [dict(zip(names, values.values(), strict=True)) for values in history.gate_values if names]
        history = replace(history, gate_values=renamed)
    heads, widths = panels_of(kept), panels_of(neurons)
    frames = frames_of(
        history,
        kept=[block for panel in heads for _, block in panel.rows],
        neurons=[block for panel in widths for _, block in panel.rows],
        search_steps=page.search_steps,
        score=page.score,
    )
    shown = [asdict(frame) for frame in frames]
    return {"heads": heads, "widths": widths, "frames": shown, "moved": moved_choice(history, kept)}


def _charts(page: RunPage, reference: Mapping[str, float]) -> list[Chart]:
    history, score = page.history, page.score
    steps = {"steps": page.total_steps, "removal": page.search_steps}
    final, dense = (
        metrics.get(f"val/{score.name}", math.nan)
        for metrics in (page.summary.metrics.get(Stage.COMPACT, {}), reference)
    )
    curves = curves_of(history, page.summary, score=score, removal=page.search_steps, log=page.log)
    charts = [score_chart(curves, score, **steps, final=final, dense=dense)]
    if page.summary.search:
        after, before = {
            "heads": (sum(len(heads) for _, heads, _ in page.kept), sum(number for _, _, number in page.kept)),
            "neurons": (sum(number for _, number, _ in page.neurons), sum(number for _, _, number in page.neurons)),
            "cost": (sum(history.spent.values()) or math.nan, 1),
        }[history.quantity]
        charts.append(amount_chart(curves, history.quantity, **steps, final=after, total=before))
    return [*charts, *loss_charts(curves, **steps)]
