"""Loading saved models in a process that has loaded nothing before."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]

# Loads every folder of a job and saves the outputs of the models. The first argument is the job's file.
SCRIPT = """
import importlib.util, sys, traceback
import torch, transformers
torch.set_num_threads(1)
path, with_package = sys.argv[1], sys.argv[2] == "with package"
if not with_package:
    sys.modules["gating"] = None  # as where it is not installed
assert (importlib.util.find_spec("gating") is not None) == with_package

def answer(folder, auto_class, batch, save_again=None, texts=None):
    if with_package:
        from gating import load_compact as load
    else:
        auto = getattr(transformers, auto_class)
        load = lambda place: auto.from_pretrained(place, trust_remote_code=True)
    model = load(folder)
    with torch.no_grad():
        found = {"outputs": [model(**batch)[0]], "training": model.training}
        if save_again:
            model.save_pretrained(save_again)
            found["outputs"].append(load(save_again)(**batch)[0])
    if texts and not with_package:
        pipe = transformers.pipeline("text-classification", model=folder, trust_remote_code=True, device="cpu")
        rows = pipe(texts, top_k=None)
        found["scores"] = [[one["score"] for one in sorted(row, key=lambda one: one["label"])] for row in rows]
    found["modules"] = [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]
    return found

answers = {}
for name, job in torch.load(path).items():
    try:
        answers[name] = answer(**job)
    except Exception:
        answers[name] = {"error": traceback.format_exc()}
torch.save(answers, path + ".answers")
"""


def answers_of_fresh_process(jobs: dict[str, dict], *, with_package: bool) -> dict[str, dict]:
    """Load folders elsewhere, with ``load_compact``, or by remote code where the package cannot be imported.

    Args:
        jobs: By name: ``folder``, ``auto_class``, ``batch``, and optionally ``save_again`` (another folder, to save
            the loaded model in and load it once more) and ``texts`` (for a pipeline).
        with_package: Whether this package can be imported there.

    Returns:
        By name: ``outputs``, ``training``, ``modules`` of remote code and ``scores``, or the ``error``.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "job.pt"
        torch.save(jobs, path)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"HF_MODULES_CACHE": f"{scratch}/modules", "HF_HUB_OFFLINE": "1"}
        if with_package:
            environment["PYTHONPATH"] = str(ROOT)
        # -P keeps the current folder out of the import path.
        command = [sys.executable, "-P", "-c", SCRIPT, str(path), "with package" if with_package else "without"]
        process = subprocess.run(
            command, cwd=scratch, env=environment, capture_output=True, text=True, timeout=200, check=False
        )
        assert process.returncode == 0, process.stderr
        answers: dict[str, dict] = torch.load(f"{path}.answers")
    return answers


def outputs_of(answer: dict) -> list[torch.Tensor]:
    """Return the outputs of a model in a fresh process; fail with its error, if one was raised."""
    assert "error" not in answer, answer["error"]
    outputs: list[torch.Tensor] = answer["outputs"]
    return outputs
