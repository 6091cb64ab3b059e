"""One run: prepared, its four phases, and its end."""

import json
import time
from dataclasses import replace
from datetime import date
from functools import partial

import torch
from rich.console import Console

from gating.compact.files import read_config
from gating.compact.limits import check_finite
from gating.compact.save import save_compact
from gating.compact.stock import StockError
from gating.distributed.collectives import is_rank_zero
from gating.loader.modeling import RECORD_KEY
from gating.models.sources import short_name
from gating.report.card import usage_code
from gating.report.figures import final_gates
from gating.report.metadata import describe_data
from gating.report.page import write_page
from gating.report.results import RunResults
from gating.report.rows import CompactReport, heads_per_layer, neurons_per_layer, print_report
from gating.run.folder import CONFIG, Phase, RunFolder
from gating.run.phases import fine_tune, recover, remove, search
from gating.run.prepare import prepare
from gating.run.run import Run
from gating.run.settings import Settings
from gating.serving.exporting import find_runtimes
from gating.sharding.copies import gather_model, has_room_for
from gating.storage.hub import upload
from gating.structure.blocks import share_specs
from gating.structure.layers import count_units
from gating.tasks.base import Sample
from gating.tracking.loggers import log_figure, log_outcome, log_samples, read_log
from gating.tracking.redaction import redact
from gating.tracking.verbosity import quiet_libraries


def execute(settings: Settings, folder: RunFolder) -> None:
    """Execute a run in its folder, which holds the lock; one that was interrupted goes on."""
    quiet_libraries()
    run = prepare(settings, folder)
    if is_rank_zero():
        title, heads = run.objects.source.title, count_units(run.state.model, "heads")
        print(f"{title}: {heads} heads, {run.total_steps} steps in {folder.path}")
    fine_tune(run)
    if settings.sizes:
        from gating.run.sizes import make_sizes

        make_sizes(run, make_size)
        return
    make_size(run)


def make_size(run: Run) -> None:
    """Make a smaller model of the present one, by the phases after the fine-tuning, and write its results."""
    for step in (search, remove, recover, finish):
        step(run)


def finish(run: Run) -> None:
    """Evaluate the model, save it, and write its exports and the report."""
    compact = "compact, after recovery" if run.recovery_steps else "compact, without recovery"
    title = compact if run.objects.objective else "dense"
    run.evaluate("compact", title, splits=run.data.module.splits[1:])
    run.state.teacher = None  # Its memory is needed now.
    has_room = gather(run)
    if not is_rank_zero():
        return
    export(run, has_room=has_room)
    if run.settings.exports or run.settings.freezes(Phase.SEARCH):
        from gating.run.exports import export_formats, write_recipe

        write_recipe(run, has_room=has_room)
        export_formats(run)
    report(run)


def gather(run: Run) -> bool:
    """Make a sharded model whole on the CPU of rank 0; return whether there is room for copies. Called by all ranks."""
    state = run.state
    if not run.is_sharded:
        return True
    has_room, device = has_room_for(state.model), state.model.device
    whole = gather_model(state.model)
    if whole is not None:
        state.model = whole.to(device) if has_room else whole  # type: ignore[arg-type]
    return has_room


def export(run: Run, *, has_room: bool) -> None:
    """Time the compact model against the dense one, and save it; without room for copies, it is only saved."""
    state = run.state
    _compare(run, has_room=has_room)
    save = partial(
        save_compact,
        state.model,
        run.folder.compact,
        tokenizer=run.data.processor,
        report=_compact_report(run),
        overwrite=True,
    )
    if not has_room:
        print(
            "The memory of the first process has no room for copies of the model: it is not timed, and it is saved as "
            "a compact folder without loading it for a check."
        )
        check_finite(state.model, type(state.model).__name__)
        save(stock=False, verify=False)
        return
    try:
        save(stock=True if run.objects.budget["uniform"] else None)
    except StockError as error:
        print(f"Saved as a compact folder: {error}")
        save(stock=False)


def _compare(run: Run, *, has_room: bool) -> None:
    """Measure the sizes of the compact and the dense model, and with room for both their times."""
    state = run.state
    if not has_room:
        with torch.device("meta"):
            dense = type(state.model)._from_config(run.dense_config)
        state.summary.compare_models(dense, state.model)
        return
    with state.summary.timed("latency"):
        dense = type(state.model)._from_config(run.dense_config).to(state.model.device, state.model.dtype)
        share_specs(state.model, dense)
        elapsed = time.monotonic() - run.started
        latencies = run.timing.compare(dense, state.model, run_seconds=elapsed)
    state.summary.latency, state.summary.short_latency = latencies
    state.summary.compare_models(dense, state.model, run.timing.batch(state.model.device))


def _compact_report(run: Run) -> CompactReport:
    prepared = run.data.prepared
    score = prepared.final_score or prepared.score
    data = run.settings.data
    report = run.state.summary.compact_report(score, describe_data(data))
    about = [f"Trained on: {data['about']}"] if data.get("about") else []
    report = replace(report, notes=[*about, *report.notes])
    return replace(report, base_model=getattr(run.objects.source, "hub_name", None))


def report(run: Run) -> None:
    """Print and write the results; the metrics come last, since a folder with metrics is finished."""
    samples = _samples(run)
    state, place, results = run.state, run.folder, _results_of(run, samples)
    log_outcome(run.loggers, state.summary.flat())
    if state.history.gate_values:
        log_figure(run.loggers, "gates", final_gates(results), step=results.total_steps)
    print_report(Console(), results.kept, results.report, neurons=results.neurons)
    if not results.is_dense and not results.reference:
        print("This run has no dense one beside it; for one: python train.py <the same settings> objective=none")
    _show_samples(run, samples)
    write_page(place.report / "index.html", results, gates_file=place.report / "gates.png")
    state.summary.write(place.metrics, score=results.final_score, seed=run.settings.seed)
    runtimes = [runtime.name for runtime in results.runtimes if not runtime.reason]
    print(f"The model runs in transformers, {', '.join(runtimes)}; the commands are in the report.")
    print(
        f"Everything is in {place.path}; the report is {place.report / 'index.html'}, the model is in {place.compact}"
    )
    if line := place.end(keep_checkpoints=run.settings.keep_checkpoints):
        print(line)
    # Last: if it fails, the run is finished nonetheless.
    if (name := run.settings.push_to_hub) is not None:
        print(f"Uploaded to {upload(run.folder.compact, f'{name}{run.folder.suffix}', private=True)}")


def _results_of(run: Run, samples: list[Sample]) -> RunResults:
    state, score = run.state, run.data.prepared.score
    is_stock, compact = RECORD_KEY not in read_config(run.folder.compact), run.folder.compact
    exports = {str(name): run.folder.export(name) for name in run.settings.exports}
    return RunResults(
        title=redact(f"{short_name(run.objects.source)} on {describe_data(run.settings.data).name}"),
        history=state.history,
        summary=state.summary,
        score=score,
        final_score=run.data.prepared.final_score or score,
        kept=heads_per_layer(state.model),
        neurons=neurons_per_layer(state.model),
        removed_at=run.removed_at,
        total_steps=run.removed_at + run.recovery_steps,
        config=(run.folder.path / CONFIG).read_text(encoding="utf-8"),
        compact=compact,
        usage=usage_code(state.model, compact, place=str(compact), stock=is_stock),
        runtimes=find_runtimes(state.model, run.folder.path, compact=compact if is_stock else None, exports=exports),
        samples=samples,
        date=date.today().isoformat(),
        log=read_log(run.folder.path),
    )


def _samples(run: Run) -> list[Sample]:
    """Return texts that the compact model generates, beside the dense one's; none if its task generates no texts."""
    samples = run.write_samples()
    dense = {sample["prompt"]: sample["written"] for sample in run.state.summary.dense_samples if "prompt" in sample}
    return [
        {"prompt": sample["prompt"], "before": dense[sample["prompt"]], "written": sample["written"]}
        if sample.get("prompt") in dense
        else sample
        for sample in samples
    ]


def _show_samples(run: Run, samples: list[Sample]) -> None:
    """Print, log and write texts of the compact model."""
    if not samples:
        return
    for sample in samples:
        print("Written by the compact model:", *(f"  {name}: {text}" for name, text in sample.items()), sep="\n")
    log_samples(run.loggers, samples)
    text = "".join(f"{json.dumps(sample, ensure_ascii=False)}\n" for sample in samples)
    run.folder.report.mkdir(parents=True, exist_ok=True)
    (run.folder.report / "samples.jsonl").write_text(text, encoding="utf-8")
