"""Exports of a run for other runtimes, with their accuracy, and its recipe."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from gating.compact.recipe import save_recipe
from gating.errors import InputError, explain
from gating.models.adapters import NoAdapters
from gating.models.hub import PACKAGE, locate
from gating.models.sources import Pretrained
from gating.pruning.latency import CopyTimer
from gating.report.score import Score
from gating.run.build import trains_weights
from gating.run.folder import Phase
from gating.run.run import Run
from gating.run.settings import Settings
from gating.serving.formats import FORMATS, check_packages, export_compact
from gating.serving.graphs.runtime import GraphModel

# Loss of score by 8-bit weights, as it is shown, above which it is a warning.
_LOSS = 0.5
# Seconds of the timings of a graph beside that of the dense model.
_SECONDS = 5.0
# Options of exports by the part of their names after the format.
_OPTIONS: dict[str, dict[str, Any]] = {"": {}, "int8": {"int8": True}, "q8_0": {"dtype": "q8_0"}}


def check_exports(settings: Settings, model: PreTrainedModel) -> None:
    """Raise ``ImportError`` or ``InputError`` if a run could not export its model at its end."""
    for name in settings.exports:
        format = name.partition("-")[0]
        check_packages(format)
        reason = FORMATS[format].reason_against(model)
        if settings.trainer.get("strategy") == "fsdp":
            reason = "a run with trainer=fsdp exports nothing: use head-gating export on its compact folder."
        if reason:
            raise InputError(f"exports=[{name}]: {reason} Leave {name} out.")


def export_formats(run: Run) -> None:
    """Export the compact model of a run and evaluate the graphs; a failure is a warning, since the model is saved."""
    for name in run.settings.exports:
        try:
            with run.state.summary.timed("exports"):
                _export(run, name)
        except Exception as error:  # Runtimes raise errors of any class.
            warning = f"The export to {name} failed: {explain(error)}"
            run.state.summary.warnings.append(warning)
            print(f"warning: {warning}")


def _export(run: Run, name: str) -> None:
    format, _, kind = name.partition("-")
    place, options = run.folder.export(name), _OPTIONS[kind]
    print(f"Exporting to {name} ...", flush=True)
    report = export_compact(run.folder.compact, place, format=format, overwrite=True, **options)
    print("\n".join((f"{report.path}: {report.megabytes:,.1f} MB", *report.sentences)))
    if format not in ("onnx", "openvino") and not kind:
        return
    exported = read_export(run.state.model, place, kind=kind)
    _score(run, name, exported)
    if kind == "int8" and run.objects.objective is not None:
        _compare_with_dense(run, name, exported)
    score, summary = run.data.prepared.score, run.state.summary
    floats, integers = (summary.score_of(stage, score) for stage in ("compact", name))
    if kind and floats is not None and integers is not None:
        warning = describe_loss(score, floats, integers, name=name)
        if warning is not None:
            summary.warnings.append(warning)
            print(f"warning: {warning}")


def read_export(model: PreTrainedModel, place: Path, *, kind: str) -> Any:
    """Return an export of a model as a module that predicts, in its runtime or with the weights that it has there."""
    if kind != "q8_0":
        return GraphModel(model.config, place, num_threads=torch.get_num_threads())
    from gating.serving.gguf.writing import round_weights

    return round_weights(model)


def describe_loss(score: Score, floats: float, integers: float, *, name: str) -> str | None:
    """Return a warning if 8-bit weights cost more of a validation score than half a point."""
    if score.scale * score.gain(floats, integers) <= _LOSS:
        return None
    return (
        f"The 8-bit weights of {name} have a validation {score.name} of {score.show(integers)}, those in floats "
        f"{score.show(floats)}: use the export without 8 bits, or train longer."
    )


def _score(run: Run, name: str, exported: Any, *, title: str = "") -> None:
    """Evaluate an export on validation and test data."""
    # A graph only predicts: metrics of generated texts are left out.
    data, metrics = run.data.in_one_process(run.settings.trainer), run.data.prepared.metrics.clone()
    for metric in metrics.values():
        # The other processes have ended.
        metric.distributed_available_fn = lambda: False
    for split in (split for split in data.module.splits[1:] if data.num_evaluated[split]):
        found = data.evaluate(exported, split, task=run.objects.task, metrics=metrics, title=f"{name}: {split}")
        run.state.summary.add_metrics(name, title or name, split, found.metrics)


def _compare_with_dense(run: Run, name: str, exported: nn.Module) -> None:
    """Time the export of the compact model beside the same export of the dense one, which is scored if it is trained.

    Several sizes of a model share the export of the dense one.
    """
    state, stage, title = run.state, f"dense-{name}", f"dense, {name}"
    if name not in state.dense_exports:
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            place, source = Path(folder) / "export", run.folder.dense
            if not source.is_dir():
                source = Path(folder) / "dense"
                type(state.model)._from_config(run.dense_config).save_pretrained(source)
                run.data.processor.save_pretrained(source)
            print(f"Exporting the dense model to {name}, to compare with it ...", flush=True)
            export_compact(source, place, format=name.partition("-")[0], int8=True)
            dense = read_export(state.model, place, kind="int8")
            if run.folder.dense.is_dir():
                _score(run, stage, dense, title=title)
            state.dense_exports[name] = dense, state.summary.metrics.get(stage, {})
    dense, found = state.dense_exports[name]
    if found:
        state.summary.titles[stage], state.summary.metrics[stage] = title, found
    batch = run.timing.fitted_batch(state.model, passes=1, run_seconds=lambda _: 0.0)
    words = ", ".join(filter(None, (run.timing.length, name)))
    state.summary.exports[name] = CopyTimer(dense, batch, seconds=_SECONDS, length=words).time(exported)


def write_recipe(run: Run, *, has_room: bool) -> None:
    """Write the recipe of a run whose weights were never trained; where none can be made, print the reason."""
    if not run.settings.freezes(Phase.SEARCH) or (not run.settings.freezes(Phase.RECOVERY) and run.recovery_steps):
        return  # Trained weights were asked for.
    source, reason = run.objects.source, ""
    if not has_room:
        reason = "the memory has no room for a second copy of the model"
    elif not isinstance(run.objects.adapters, NoAdapters) or trains_weights(run.settings, run.objects, Phase.SEARCH):
        reason = "adapters were trained, which are merged into the weights"
    elif not isinstance(source, Pretrained) or source.name.startswith(PACKAGE):
        reason = f"{source.title} is no folder and no model on the hub"
    else:
        try:
            with run.state.summary.timed("recipe"):
                place = save_recipe(
                    run.state.model,
                    run.folder.path / "recipe",
                    base=locate(source.name, revision=source.revision),
                    revision=source.revision,
                    folded=run.state.history.folded,
                    overwrite=True,
                )
        except Exception as error:  # Hours of search are not lost for it.
            reason = explain(error).rstrip(".")
        else:
            size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) / 1000
            print(f"The recipe, {size:,.0f} kB from which gating.load_compact makes the compact model, is in {place}")
    if reason:
        print(f"No recipe is written beside the compact model: {reason}.")
