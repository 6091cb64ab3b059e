"""Several sizes of one fine-tuned model: each chosen, removed, trained on and saved, and the curve of all of them."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

from rich.console import Console

from gating.distributed.collectives import is_rank_zero
from gating.errors import UserError, explain
from gating.report.curve import Curve, CurvePoint
from gating.report.metadata import describe_data
from gating.run.folder import METRICS
from gating.run.measured_budget import measured_for
from gating.run.phases import evaluate_dense
from gating.run.run import Run, RunState
from gating.run.timing import RunTiming
from gating.storage.files import read_table, write_atomically
from gating.tracking.loggers import SizeLogger, log_outcome


def make_sizes(run: Run, make: Callable[[Run], None]) -> None:
    """Make each size of a run of its dense model, which is trained and ranked once; one that fails ends no other.

    ``make`` makes the model of a run of one size, and writes its results.
    """
    sizes, failures = run.settings.sizes, dict[str, str]()
    for number, (name, value) in enumerate(sizes, 1):
        title = _title(name, value)
        one = run.folder.of_size(title)
        if one.metrics.is_file():
            continue
        if is_rank_zero():
            print(f"Size {number} of {len(sizes)}: objective.{name}={value}", flush=True)
        evaluate_dense(run)
        try:
            make(_run_of(run, name, value))
        except UserError as error:
            failures[title] = explain(error)
            if is_rank_zero():
                print(f"objective.{name}={value} failed: {failures[title]}")
    if len(failures) == len(sizes):
        raise UserError(next(iter(failures.values())))
    if is_rank_zero():
        _finish(run, failures)


def _title(name: str, value: Any) -> str:
    """Return the name of a size in those of files, such as ``2x``, ``0.4`` or ``18-heads``."""
    return {"speedup": f"{value:g}x", "keep": f"{value:g}"}.get(name, f"{value}-heads")


def _run_of(run: Run, name: str, value: Any) -> Run:
    """Return the run of one size, which begins with the dense model."""
    settings, state = run.settings.of_size(name, value), run.state
    measured = measured_for(run.measured, value)
    return replace(
        run,
        settings=settings,
        objects=run.objects.with_budget({**settings.objective, **measured}),
        folder=run.folder.of_size(_title(name, value)),
        loggers=[SizeLogger(logger, _title(name, value)) for logger in run.loggers],
        timing=RunTiming(run.timing.settings, run.timing.module, run.timing.split),
        state=RunState(
            model=deepcopy(state.model),
            dense_steps=state.dense_steps,
            teacher=state.teacher,
            history=deepcopy(state.history),
            summary=deepcopy(state.summary),
            order=state.order,
            smallest=state.smallest,
            dense_exports=state.dense_exports,
        ),
    )


def _finish(run: Run, failures: dict[str, str]) -> None:
    """Write and print the curve of the sizes; the numbers are those of the recommended one."""
    folder, score = run.folder, run.data.prepared.final_score or run.data.prepared.score
    found = {}
    for name, value in run.settings.sizes:
        place = folder.of_size(_title(name, value))
        if place.metrics.is_file():
            found[name, value] = read_table(place.metrics)
    int8 = next((name for name in run.settings.exports if name.endswith("-int8")), "")
    points = [_point(numbers, name, value, score.name, int8=int8) for (name, value), numbers in found.items()]
    first = next(iter(found.values()))
    dense = replace(
        points[0],
        asked="keep",
        target=1.0,
        keep=1.0,
        heads=int(first["num_heads_before"]),
        neurons=int(first.get("num_neurons_before", 0)),
        parameters=int(first["num_parameters_before"]),
        value=first[f"dense/val/{score.name}"],
        speedup=1.0,
        error=0.0,
        seconds=first["seconds/dense"],
        int8=first.get(f"dense-{int8}/val/{score.name}"),
    )
    notes = [f"{title} failed: {reason}" for title, reason in failures.items()]
    curve = Curve(
        title=f"{run.objects.source.title} on {describe_data(run.settings.data).name}",
        score=score,
        dense=dense,
        points=points,
        max_drop=run.settings.sweep["max_drop"],
        notes=notes,
        is_trained=True,
    )
    curve.write(folder.report, about={})
    chosen = next((key for key, point in zip(found, points, strict=True) if point is curve.chosen), next(iter(found)))
    log_outcome(
        run.loggers,
        {
            f"{_title(*key)}/{name}": value
            for key, numbers in found.items()
            for name, value in numbers.items()
            if isinstance(value, float)
        },
    )
    sizes = {_title(*key): str(folder.of_size(_title(*key)).compact.name) for key in found}
    numbers = {**found[chosen], "sizes": sizes, "recommended_size": _title(*chosen), "failed_sizes": failures}
    console = Console()
    console.print(curve.table())
    for line in [*curve.conclusion(), *notes]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    models = ", ".join(sizes.values())
    print(f"Everything is in {folder.path}; the report is {folder.report / 'index.html'}, the models are {models}")
    write_atomically(folder.path / METRICS, json.dumps(numbers, indent=2) + "\n")
    if line := folder.end(keep_checkpoints=run.settings.keep_checkpoints):
        print(line)


def _point(numbers: dict[str, Any], name: str, value: Any, score: str, *, int8: str) -> CurvePoint:
    """Return the measurements of a size from its ``metrics.json``; ``int8`` is the name of an export, if any."""
    return CurvePoint(
        asked=name,
        target=value,
        keep=numbers["macs"] / numbers["macs_before"] if numbers.get("macs_before") else 1.0,
        heads=int(numbers["num_heads"]),
        neurons=int(numbers.get("num_neurons", 0)),
        parameters=int(numbers["num_parameters"]),
        value=numbers[f"val/{score}"],
        speedup=numbers.get("speedup", 1.0),
        error=numbers.get("speedup_error", 0.0),
        seconds=sum(numbers.get(f"seconds/{phase}", 0.0) for phase in ("finalize", "compensate", "recovery")),
        int8=numbers.get(f"{int8}/val/{score}"),
        int8_speedup=numbers.get(f"speedup_{int8}"),
    )
