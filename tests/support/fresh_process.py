"""Saved models, loaded in a process that has loaded none before, where this package is not installed or where it is.

A server for each kind imports torch and transformers once, and forks for each request.
"""

import atexit
import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
import transformers

__all__ = ["answers_of_fresh_process", "auto_class_of", "difference_elsewhere", "outputs_of", "save_for_elsewhere"]

ROOT = Path(__file__).resolve().parents[2]


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
        _ask(with_package, "_answer_all", str(path), with_package)
        answers: dict[str, dict] = torch.load(f"{path}.answers")
    return answers


def outputs_of(answer: dict) -> list[torch.Tensor]:
    """Return the outputs of a model in a fresh process; fail with its error, if one was raised."""
    assert "error" not in answer, answer["error"]
    outputs: list[torch.Tensor] = answer["outputs"]
    return outputs


def auto_class_of(model: Any) -> str:
    """Return the Auto class that picks the model's class for its configuration."""
    auto_map: dict[str, str] = model.config.auto_map
    return next(auto for auto, path in auto_map.items() if path.endswith("." + type(model).__name__))


def save_for_elsewhere(model: Any, folder: Path, batch: dict[str, Any], **options: Any) -> None:
    """Save a compact model with a batch and its finite outputs, for :func:`difference_elsewhere`.

    ``options`` are arguments of :func:`gating.save_compact`.
    """
    import gating

    outputs = _compute(model.eval(), batch)
    gating.save_compact(model, folder, **options)
    expected = {key: value for key, value in outputs.items() if torch.is_tensor(value) and value.isfinite().all()}
    torch.save({"batch": batch, "expected": expected}, folder / "check.pt")


def difference_elsewhere(folder: Path, auto_class: str) -> float:
    """Load a folder without this package, save and load it again there; return the differences of the outputs.

    Args:
        folder: A folder of :func:`save_for_elsewhere`.
        auto_class: The class of transformers whose ``from_pretrained`` loads it.

    Returns:
        The largest absolute difference of each output, summed over all outputs of both models.
    """
    difference: float = _ask(False, "_reload", str(folder), auto_class)
    return difference


def _ask(with_package: bool, function: str, *arguments: Any) -> Any:
    """Return the value of a function of this file in a fork of a server; fail with its traceback, if it fails."""
    server = _server(with_package)
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps([function, arguments]) + "\n")
    server.stdin.flush()
    value, error = json.loads(server.stdout.readline())
    assert error is None, error
    return value


@functools.cache
def _server(with_package: bool) -> subprocess.Popen[str]:
    """Start the server of this process; it ends with its standard input."""
    home = tempfile.TemporaryDirectory(prefix="head-gating-elsewhere-")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_MODULES_CACHE")}
    environment |= {"HF_HOME": home.name, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if with_package:
        environment["PYTHONPATH"] = str(ROOT)
    server = subprocess.Popen(
        # -P keeps the folder of this file out of the import path.
        [sys.executable, "-P", __file__, "with package" if with_package else "without"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        cwd=home.name,
        text=True,
    )
    atexit.register(home.cleanup)
    atexit.register(server.communicate)
    return server


def _serve(with_package: bool) -> None:
    if with_package:
        from gating import load_compact  # noqa: F401
    else:
        sys.modules["gating"] = None  # type: ignore[assignment]  # as where it is not installed
    assert (importlib.util.find_spec("gating") is not None) == with_package
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    # Each folder needs these; they are imported when they are named.
    assert transformers.AutoModel
    assert transformers.PreTrainedModel
    # Whatever a model prints goes to the standard errors instead.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        process = os.fork()
        if process:
            os.waitpid(process, 0)
            continue
        function, arguments = json.loads(line)
        try:
            answer = globals()[function](*arguments), None
        except Exception:
            answer = None, traceback.format_exc()
        print(json.dumps(answer), file=answers, flush=True)
        os._exit(0)


def _answer_all(path: str, with_package: bool) -> None:
    answers = {}
    for name, job in torch.load(path).items():
        try:
            answers[name] = _answer(with_package, **job)
        except Exception:
            answers[name] = {"error": traceback.format_exc()}
    torch.save(answers, path + ".answers")


def _answer(
    with_package: bool,
    folder: str,
    auto_class: str,
    batch: dict[str, Any],
    save_again: str | None = None,
    texts: list[str] | None = None,
) -> dict[str, Any]:
    if with_package:
        from gating import load_compact as load
    else:
        load = functools.partial(getattr(transformers, auto_class).from_pretrained, trust_remote_code=True)
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


def _reload(folder: str, auto_class: str) -> float:
    load = functools.partial(getattr(transformers, auto_class).from_pretrained, trust_remote_code=True)
    saved = torch.load(f"{folder}/check.pt")
    first = load(folder)
    first.save_pretrained(f"{folder}/again")
    total = 0.0
    for model in (first, load(f"{folder}/again")):
        outputs = _compute(model, saved["batch"])
        total += sum(float((outputs[key] - value).abs().max()) for key, value in saved["expected"].items())
    return total


def _compute(model: Any, batch: dict[str, Any]) -> Any:
    torch.manual_seed(0)  # Masked auto-encoders draw which patches to hide.
    with torch.no_grad():
        return model(**batch)


if __name__ == "__main__":
    _serve(sys.argv[1] == "with package")
