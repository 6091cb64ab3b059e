"""Exports of a run's compact model for other runtimes, with their accuracy."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from gating.distributed.collectives import is_rank_zero
from gating.errors import InputError, explain
from gating.report.summary import Stage
from gating.run.run import Run
from gating.run.settings import Settings
from gating.serving.exporting import EXPORT_RECORD
from gating.serving.formats import FORMATS, ServingReport, export_compact
from gating.serving.graphs.runtime import GraphModel
from gating.storage.files import replacing_folder

__all__ = ["check_exportable", "check_exports", "export_formats"]

# Options of exports by the part of their names after the format.
_OPTIONS: dict[str, dict[str, Any]] = {"": {}, "int8": {"int8": True}, "q8_0": {"dtype": "q8_0"}}


def check_exports(settings: Settings) -> None:
    """Check that a run can export its model at its end.

    Raises:
        ImportError: A package for an export is missing.
        InputError: The model is cut over several processes.
    """
    for name in settings.exports:
        FORMATS[_parts(name)[0]].check_packages()
        if settings.trainer.get("strategy") == "fsdp":
            raise InputError(
                f"exports=[{name}] needs a whole model, and trainer=fsdp leaves it in parts: leave it out, and export "
                "the model later with head-gating export."
            )


def check_exportable(settings: Settings, model: PreTrainedModel) -> None:
    """Raise ``InputError`` if a runtime that a run exports its model to does not run such models."""
    for name in settings.exports:
        if reason := FORMATS[_parts(name)[0]].reason_against(model):
            raise InputError(f"exports=[{name}]: {reason} Leave {name} out.")


def export_formats(run: Run) -> None:
    """Export the compact model of a run to the formats in its settings, and evaluate ONNX graphs, on rank 0.

    What fails is printed as a warning: the compact model is saved.
    """
    if not is_rank_zero():
        return
    for name in run.settings.exports:
        place = run.folder.export(name)
        try:
            with run.state.summary.timed("exports"):
                _export(run, name, place)
        except Exception as error:  # Runtimes raise errors of any class, and the compact model is saved.
            warning = f"The export to {name} failed: {explain(error)}"
            run.state.summary.warnings.append(warning)
            print(f"warning: {warning}")


def _export(run: Run, name: str, place: Path) -> None:
    format, options = _parts(name)
    report = _write(run.folder.compact, place, format, options)
    print("\n".join((f"{report.path}: {report.megabytes:,.1f} MB", *report.sentences)))
    if format != "onnx":
        return
    graph: Any = GraphModel(run.state.model.config, place)
    # A graph only predicts: metrics of generated texts are left out.
    data, metrics = run.data.in_one_process(run.settings.trainer), run.data.prepared.metrics.clone()
    for metric in metrics.values():
        # The other processes have ended.
        metric.distributed_available_fn = lambda: False
    for split in (split for split in data.module.splits[1:] if data.num_evaluated[split]):
        values, _ = data.evaluate(graph, split, task=run.objects.task, metrics=metrics, title=f"{name}: {split}")
        run.state.summary.add_metrics(Stage.INT8 if options else Stage.ONNX, name, split, values)


def _write(compact: Path, place: Path, format: str, options: dict[str, Any]) -> ServingReport:
    """Export a model to a folder; a format that is one file has it there, under the name of the model's folder."""
    if not (ending := FORMATS[format].ending):
        report: ServingReport = export_compact(compact, place, format=format, overwrite=True, **options)
        return report
    with replacing_folder(place, overwrite=True) as folder:
        report = export_compact(compact, folder / f"{compact.name}{ending}", format=format, **options)
        facts = json.dumps({"format": format, **options}) + "\n"
        (folder / EXPORT_RECORD).write_text(facts, encoding="utf-8")
    written = place / report.path.name
    sentences = [each.replace(str(report.path), str(written)) for each in report.sentences]
    return replace(report, path=written, sentences=tuple(sentences))


def _parts(name: str) -> tuple[str, dict[str, Any]]:
    """Return the format and the options of an export."""
    format, _, kind = name.partition("-")
    return format, _OPTIONS[kind]
