"""What a run leaves behind: the compact model, pictures and numbers."""

import json

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from gating.compact.save import save_compact
from gating.discovery.discover import share_specs
from gating.pruning.measure import compare_latency
from gating.report.card import heads_per_layer
from gating.report.figures import save_pictures
from gating.report.tables import print_report, print_samples
from gating.run.run import Run
from gating.tasks.base import WritesText
from gating.tracking.loggers import log_outcome, log_samples

__all__ = ["export", "report"]


def export(run: Run) -> None:
    """Time the compact model beside the dense one and save it."""
    with run.summary.timed("latency"):
        dense = type(run.model)._from_config(run.dense_config).to(run.model.device, run.model.dtype)
        share_specs(run.model, dense)
        run.summary.latency = compare_latency(dense, run.model, run.probe_batch())
    run.summary.compare_models(dense, run.model)
    save_compact(
        run.model,
        run.folder / "compact",
        tokenizer=run.processor,
        report=run.summary.compact_report(run.prepared.final_score or run.prepared.score),
        # Of an earlier attempt of this run: what was in its folder before is out of the way.
        overwrite=True,
    )


def report(run: Run) -> None:
    """Write the pictures and numbers of a run, and show them.

    The file of numbers comes last: a folder that has it is finished.
    """
    score, numbers, kept = run.prepared.score, run.summary.flat(), heads_per_layer(run.model)
    final_score = run.prepared.final_score or score
    save_pictures(run.folder / "report", run.history, score=score, kept=kept, search_steps=run.search_steps)
    log_outcome(run.loggers, numbers, run.folder / "compact")
    print_report(Console(), kept, run.summary.compact_report(final_score))
    _show_samples(run)
    run.summary.write(run.folder / "metrics.json", metric_name=final_score.name, seed=run.seed)
    print(f"Everything is in {run.folder}; the model is in {run.folder / 'compact'}")


def _show_samples(run: Run) -> None:
    """Let the compact model write, if it is one that does, and show what."""
    if not (isinstance(run.task, WritesText) and isinstance(run.processor, PreTrainedTokenizerBase)):
        return
    samples = run.task.write_samples(run.model.eval(), run.processor, run.prepared.splits)
    print_samples(Console(), samples)
    log_samples(run.loggers, samples)
    text = "".join(f"{json.dumps(sample, ensure_ascii=False)}\n" for sample in samples)
    (run.folder / "report" / "samples.jsonl").write_text(text, encoding="utf-8")
