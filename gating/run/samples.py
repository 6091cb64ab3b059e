"""Texts that the compact model of a run writes, for its report, beside those of the dense one where it is known."""

import json

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from gating.proof.outputs import evaluating
from gating.report.tables import print_samples
from gating.run.run import Run
from gating.sharding.plan import gathered_root
from gating.tasks.base import Sample, WritesText
from gating.tracking.loggers import log_samples

__all__ = ["show_samples", "write_dense_samples", "write_samples"]


def write_dense_samples(run: Run) -> None:
    """Add texts of the model before its search to the summary; none of a model that is cut over processes."""
    if not run.is_sharded:
        run.state.summary.dense_samples = _write(run)


def write_samples(run: Run) -> list[Sample]:
    """Return texts that the compact model generates, beside the dense one's; none if its task generates no texts."""
    samples = _write(run)
    dense = {sample["prompt"]: sample["written"] for sample in run.state.summary.dense_samples if "prompt" in sample}
    return [
        {"prompt": sample["prompt"], "before": dense[sample["prompt"]], "written": sample["written"]}
        if sample.get("prompt") in dense
        else sample
        for sample in samples
    ]


def show_samples(run: Run, samples: list[Sample]) -> None:
    """Print, log and write texts of the compact model."""
    if not samples:
        return
    print_samples(Console(), samples)
    log_samples(run.loggers, samples)
    text = "".join(f"{json.dumps(sample, ensure_ascii=False)}\n" for sample in samples)
    run.folder.report.mkdir(parents=True, exist_ok=True)
    (run.folder.report / "samples.jsonl").write_text(text, encoding="utf-8")


def _write(run: Run) -> list[Sample]:
    task, processor, model = run.objects.task, run.data.processor, run.state.model
    if not (isinstance(task, WritesText) and isinstance(processor, PreTrainedTokenizerBase)):
        return []
    with gathered_root(model), evaluating(model):
        return task.write_samples(model, processor, run.data.prepared.splits)
