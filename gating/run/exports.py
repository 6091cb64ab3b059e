"""Exports of a run's compact model for other runtimes, with their accuracy."""

from pathlib import Path
from typing import Any

from gating.distributed.collectives import is_rank_zero
from gating.errors import InputError, explain
from gating.report.summary import Stage
from gating.run.folder.contents import EXPORTS
from gating.run.folder.own_files import note_models
from gating.run.run import Run
from gating.run.settings.settings import Settings
from gating.serving.formats import FORMATS, export_compact
from gating.serving.graphs.runtime import GraphModel
from gating.storage.written import note_written

__all__ = ["check_exports", "export_formats"]

_INT8 = "-int8"


def check_exports(settings: Settings) -> None:
    """Check that a run can export its model at its end.

    Raises:
        ImportError: A package for an export is missing.
        InputError: The model is cut over several processes.
    """
    for name in settings.values["exports"]:
        FORMATS[name.removesuffix(_INT8)].check_packages()
        if settings.values["trainer"].get("strategy") == "fsdp":
            raise InputError(
                f"exports=[{name}] needs a whole model, and trainer=fsdp leaves it in parts: leave it out, and export "
                "the model later with head-gating export."
            )


def export_formats(run: Run) -> None:
    """Export the compact model of a run to the formats in its settings, and evaluate ONNX graphs, on rank 0.

    What fails is printed as a warning: the compact model is saved.
    """
    if not is_rank_zero():
        return
    for name in run.settings.values["exports"]:
        place = run.paths.folder / EXPORTS[name]
        note_written(run.paths.folder, place.name)
        try:
            with run.state.summary.timed("exports"):
                _export(run, name, place)
        except Exception as error:  # Runtimes raise errors of any class, and the compact model is saved.
            warning = f"The export to {name} failed: {explain(error)}"
            run.state.summary.warnings.append(warning)
            print(f"warning: {warning}")
    note_models(run.paths.folder)


def _export(run: Run, name: str, place: Path) -> None:
    format = name.removesuffix(_INT8)
    report: Any = export_compact(run.paths.compact, place, format=format, overwrite=True, int8=name.endswith(_INT8))
    print("\n".join((f"{report.path}: {report.megabytes:,.1f} MB", *report.sentences)))
    if format != "onnx":
        return
    graph: Any = GraphModel(run.state.model.config, place)
    # A graph only predicts: metrics of generated texts are left out.
    data, metrics = run.data.in_one_process(run.settings.values["trainer"]), run.data.prepared.metrics.clone()
    for metric in metrics.values():
        # The other processes have ended.
        metric.distributed_available_fn = lambda: False
    for split in (split for split in data.module.splits[1:] if data.num_evaluated[split]):
        values, _ = data.evaluate(graph, split, task=run.objects.task, metrics=metrics, title=f"{name}: {split}")
        run.state.summary.add_metrics(Stage.INT8 if name.endswith(_INT8) else Stage.ONNX, name, split, values)
