"""Other libraries in folders of their own under ~/.cache/head-gating, and transformers 4 in a process of its own.

Nothing is installed beside this package: torch-pruning would be one more dependency for everybody, and transformers 4
cannot be where transformers 5 is.
"""

import importlib.metadata
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.measuring import ratio
from benchmarks.rivals.cases import Heads, Subject
from benchmarks.rivals.removal import Row, Timing, judge, logits_of, masked_logits, verdict
from gating.proof.outputs import max_relative_difference, tolerance_for

CACHE = Path.home() / ".cache" / "head-gating"
TRANSFORMERS4 = "transformers 4"
_TORCH_PRUNING = "torch-pruning==1.6.1"


def torch_pruning_version() -> str:
    """Make ``torch_pruning`` importable, and return its version; its dependencies are torch and numpy."""
    folder = CACHE / _TORCH_PRUNING
    if not (folder / "torch_pruning").is_dir():
        _pip(sys.executable, "--no-deps", "--target", str(folder), _TORCH_PRUNING)
    sys.path.append(str(folder))
    importlib.invalidate_caches()
    return importlib.metadata.version("torch-pruning")


def transformers4_python() -> tuple[str, str]:
    """Return the interpreter of a virtual environment with transformers 4 and our torch, and the version it has."""
    folder = CACHE / "transformers4"
    python, done = str(folder / "bin" / "python"), folder / "done"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        _pip(python, "transformers<5", f"torch=={torch.__version__.partition('+')[0]}")
        done.touch()
    script = "from importlib.metadata import version; print(version('transformers'))"
    return python, subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def _pip(python: str, *arguments: str) -> None:
    print(f"Installing {arguments[-1]} ...", file=sys.stderr)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *arguments], check=True)


def ask_transformers4(python: str, subject: Subject, cases: Mapping[str, Heads], timing: Timing) -> dict[str, Row]:
    """Let transformers 4 remove heads in a process of its own; return a row for each case.

    Raises:
        ValueError: It computes something else with the same weights before any removal.
    """
    with tempfile.TemporaryDirectory() as folder:
        subject.model.save_pretrained(f"{folder}/model")
        job = {
            "folder": f"{folder}/model",
            "architecture": type(subject.model).__name__,
            "batch": subject.batch,
            "cases": dict(cases),
            "threads": torch.get_num_threads(),
            **timing._asdict(),
        }
        torch.save(job, f"{folder}/job.pt")
        script = str(Path(__file__).with_name("with_transformers4.py"))
        command = [python, "-P", "-W", "ignore", script, f"{folder}/job.pt", f"{folder}/answers.pt"]
        subprocess.run(command, check=True)
        answers = torch.load(f"{folder}/answers.pt")
    dense = max_relative_difference([logits_of(subject.model, subject.batch)], [answers["outputs"]])
    if answers["problems"] or dense > tolerance_for(answers["outputs"].dtype):
        raise ValueError(f"transformers 4 loads another {subject.name}, {dense:.0e} away")
    about = {"method": TRANSFORMERS4, "dense_difference": dense}
    return {case: {**about, **_row(subject, heads, answers["cases"][case])} for case, heads in cases.items()}


def _row(subject: Subject, heads: Heads, answer: Row) -> Row:
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
