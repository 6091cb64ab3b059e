"""transformers 4 on the same models and cases, in a process of its own."""

import statistics
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import ratio
from benchmarks.rivals.cases import Heads, Subject
from benchmarks.rivals.environments import Unavailable
from benchmarks.rivals.removal import Row, Timing, judge, logits_of, masked_logits, verdict
from gating.proof.outputs import max_relative_difference, tolerance_for

__all__ = ["TRANSFORMERS4", "ask_transformers4"]

TRANSFORMERS4 = "transformers 4"


def ask_transformers4(python: str, subject: Subject, cases: Mapping[str, Heads], timing: Timing) -> dict[str, Row]:
    """Let transformers 4 remove heads in a process of its own; return a row for each case.

    Raises:
        Unavailable: It does not run, or computes something else with the same weights before any removal.
    """
    with tempfile.TemporaryDirectory() as folder:
        subject.model.save_pretrained(f"{folder}/model")
        job = {
            "folder": f"{folder}/model",
            "architecture": type(subject.model).__name__,
            "batch": subject.batch,
            "cases": dict(cases),
            "threads": torch.get_num_threads(),
            "surgeries": timing.surgeries,
            "rounds": timing.rounds,
            "warm_up": timing.warm_up,
            "budget_s": timing.budget_s,
        }
        torch.save(job, f"{folder}/job.pt")
        script = str(Path(__file__).with_name("with_transformers4.py"))
        command = [python, "-P", "-W", "ignore", script, f"{folder}/job.pt", f"{folder}/answers.pt"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            reason = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise Unavailable(f"transformers 4 is left out: {python} fails ({reason}).")
        answers = torch.load(f"{folder}/answers.pt")
    dense = max_relative_difference([logits_of(subject.model, subject.batch)], [answers["outputs"]])
    if answers["problems"] or dense > tolerance_for(answers["outputs"].dtype):
        raise Unavailable(f"transformers 4 is left out: it loads another {subject.name}, {dense:.0e} away.")
    return {
        case: {
            "method": TRANSFORMERS4,
            "dense_difference": dense,
            **_row_of_transformers4(subject, heads, answers["cases"][case]),
        }
        for case, heads in cases.items()
    }


def _row_of_transformers4(subject: Subject, heads: Heads, answer: dict[str, Any]) -> Row:
    row: Row = {"works": False, "heads_asked": sum(map(len, heads.values()))}
    if "num_heads" in answer:
        row["heads"] = subject.num_layers * subject.num_heads - answer["num_heads"]
    if "error" in answer:
        return {**row, "error": answer["error"]}
    masked = masked_logits(subject, heads)
    row["effect_of_mask"] = max_relative_difference([masked], [logits_of(subject.model, subject.batch)])
    row["difference"] = max_relative_difference([masked], [answer["outputs"]])
    row |= judge(row, masked.dtype)
    times = answer["times"]
    row |= {"latency_vs_dense": ratio(times, "compact", "dense"), "rounds": len(times["dense"])}
    row["seconds"] = statistics.median(answer["seconds"])
    row["reloads"] = verdict(answer["outputs"], answer.get("reload_error", answer.get("reloaded")))
    return {**row, "from_pretrained": row["reloads"]}
