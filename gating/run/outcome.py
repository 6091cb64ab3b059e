"""Results of a run: the compact model, figures and metrics."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gating.compact.files import read_config
from gating.compact.save import save_compact
from gating.compact.stock import StockError, stock_model
from gating.discovery.discover import share_specs
from gating.gates import HeadGates
from gating.objectives.budget import HeadBudget
from gating.pruning.measure import compare_latency
from gating.pruning.prune import remove_in_copy
from gating.report.card import heads_per_layer, neurons_per_layer
from gating.report.figures import save_pictures
from gating.report.page import RunPage, write_page
from gating.report.summary import Stage
from gating.report.tables import print_report, print_samples
from gating.run.folder.contents import CONFIG
from gating.run.run import Run
from gating.run.settings.data_set import describe_data
from gating.run.sweep.reference import dense_metrics
from gating.sharding.save import has_room_for
from gating.sharding.twin import gather_model
from gating.storage.hub import upload
from gating.structure.record import RECORD_KEY
from gating.tasks.base import WritesText
from gating.tracking.loggers import log_outcome, log_samples
from gating.tracking.redaction import redact

__all__ = ["export", "gather", "note_unless_stock", "report"]


def note_unless_stock(model: PreTrainedModel, gates: HeadGates) -> None:
    """Print why a model cannot become a stock model of transformers although its layers keep equally many units.

    Half of the units are removed from a copy at random, as the choice of a run is not known before it.

    Args:
        model: The model without gates, which may be on the meta device; unchanged.
        gates: The gates that it would have.
    """
    scores = torch.rand(len(gates.log_alpha), generator=torch.Generator().manual_seed(0))
    kept = HeadBudget(keep=0.5, uniform=True).choose(gates, scores)
    try:
        stock_model(remove_in_copy(model, gates, kept))
    except StockError as error:
        print(f"objective.uniform=true: {error.in_command}")


def gather(run: Run) -> bool:
    """Make a sharded model whole on rank 0, if its memory has room; return whether it is. Called by all ranks.

    A model that no process has cut stays as it is.
    """
    state = run.state
    if run.is_sharded and has_room_for(state.model):
        device = state.model.device
        whole = gather_model(state.model)
        if whole is not None:
            state.model = whole.to(device)  # type: ignore[arg-type]
        return True
    return not run.is_sharded


def export(run: Run) -> None:
    """Time the compact model against the dense one, and save it."""
    state, prepared = run.state, run.data.prepared
    with state.summary.timed("latency"):
        dense = type(state.model)._from_config(run.dense_config).to(state.model.device, state.model.dtype)
        share_specs(state.model, dense)
        state.summary.latency = compare_latency(dense, state.model, run.probe_batch(), precision=0.01)
    state.summary.compare_models(dense, state.model, run.probe_batch())
    save = partial(
        save_compact,
        state.model,
        run.paths.compact,
        tokenizer=run.data.processor,
        report=state.summary.compact_report(
            prepared.final_score or prepared.score, describe_data(run.settings.values["data"])
        ),
        # Only an earlier attempt of this run can be there.
        overwrite=True,
    )
    if not (run.settings.values["objective"].get("uniform") and _save_stock(save)):
        save()


def _save_stock(save: Callable[..., object]) -> bool:
    """Save a model as one of transformers; print the reason and return False if it cannot be."""
    try:
        save(stock=True)
    except StockError as error:
        print(error.in_command)
        return False
    return True


def report(run: Run) -> None:
    """Write the page, the figures and the metrics of a run, and print them.

    The metrics come last: a folder with metrics is finished.
    """
    state, score, kept = run.state, run.data.prepared.score, heads_per_layer(run.state.model)
    neurons = neurons_per_layer(state.model)
    final_score = run.data.prepared.final_score or score
    save_pictures(
        state.history,
        gates_file=run.paths.gates_picture,
        history_file=run.paths.history_picture,
        score=score,
        kept=kept,
        search_steps=state.search_steps,
        neurons=neurons,
    )
    log_outcome(run.loggers, state.summary.flat(), run.paths.compact)
    print_report(Console(), kept, state.summary.compact_report(final_score), neurons=neurons)
    is_alone = Stage.DENSE not in state.summary.metrics and _sweep_of_run() is None
    if run.objects.objective is not None and is_alone:
        print("There is no dense run to compare with; for one: python train.py <the same settings> objective=none")
    write_page(run.paths.page, _page_of(run, _show_samples(run)))
    state.summary.write(run.paths.metrics, score=final_score, seed=run.settings.seed)
    print(f"Everything is in {run.paths.folder}; the report is {run.paths.page}, the model is in {run.paths.compact}")
    # Last: if it fails, the run is finished nonetheless.
    if (name := run.settings.values["push_to_hub"]) is not None:
        print(f"Uploaded to {upload(run.paths.compact, name, private=True)}")


def _page_of(run: Run, samples: list[dict[str, str]]) -> RunPage:
    """Return the contents of the page of a run, in a sweep with the dense job that it is compared with."""
    state, score, sweep = run.state, run.data.prepared.score, _sweep_of_run()
    return RunPage(
        title=redact(run.objects.source.title),
        history=state.history,
        summary=state.summary,
        score=score,
        final_score=run.data.prepared.final_score or score,
        kept=heads_per_layer(state.model),
        neurons=neurons_per_layer(state.model),
        search_steps=state.search_steps,
        total_steps=run.total_steps,
        config=(run.paths.folder / CONFIG).read_text(encoding="utf-8"),
        compact=run.paths.compact,
        auto_class=run.objects.task.auto_class.__name__,
        is_stock=RECORD_KEY not in read_config(run.paths.compact),
        samples=samples,
        dense=dense_metrics(sweep, run.paths.folder) if sweep is not None and run.objects.objective else {},
        is_in_sweep=sweep is not None,
    )


def _sweep_of_run() -> Path | None:
    """Return the folder of the sweep of which the run is a job; None for a run of its own."""
    is_job = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    return Path(HydraConfig.get().sweep.dir) if is_job else None


def _show_samples(run: Run) -> list[dict[str, str]]:
    """Print, log and return texts that the compact model generates; none if its task generates no texts."""
    task, processor = run.objects.task, run.data.processor
    if not (isinstance(task, WritesText) and isinstance(processor, PreTrainedTokenizerBase)):
        return []
    samples = task.write_samples(run.state.model.eval(), processor, run.data.prepared.splits)
    print_samples(Console(), samples)
    log_samples(run.loggers, samples)
    text = "".join(f"{json.dumps(sample, ensure_ascii=False)}\n" for sample in samples)
    run.paths.samples.write_text(text, encoding="utf-8")
    return samples
