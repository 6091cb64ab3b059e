"""Saved models, loaded in a process that has loaded none before, where this package is not installed or where it is."""

import atexit
import functools
import importlib.util
import json
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
import transformers

__all__ = ["answers_of_fresh_process", "auto_class_of", "difference_elsewhere", "outputs_of", "save_for_elsewhere"]


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
    from tests.support.versions import loading_options

    outputs = _compute(model.eval(), batch)
    gating.save_compact(model, folder, **options)
    expected = {key: value for key, value in outputs.items() if torch.is_tensor(value) and value.isfinite().all()}
    torch.save({"batch": batch, "expected": expected, "options": loading_options(model)}, folder / "check.pt")


def difference_elsewhere(folder: Path, auto_class: str, *, is_fresh: bool = True) -> float:
    """Load a folder without this package, save and load it again there; return the differences of the outputs.

    Args:
        folder: A folder of :func:`save_for_elsewhere`.
        auto_class: The class of transformers whose ``from_pretrained`` loads it.
        is_fresh: Whether the process is a new one. Otherwise, one process loads the folders of all families, which
            spares it what transformers does with the first model of a process.

    Returns:
        The largest absolute difference of each output, summed over all outputs of both models.
    """
    if is_fresh:
        difference: float = _ask(False, "_reload", str(folder), auto_class)
        return difference
    process = _start_to_reload()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps([str(folder), auto_class]) + "\n")
    process.stdin.flush()
    # Models may print, too.
    line = next((line for line in process.stdout if line.startswith(_ANSWER)), None)
    if line is None:
        _start_to_reload.cache_clear()
        raise AssertionError("the process ended")
    value, error = json.loads(line.removeprefix(_ANSWER))
    assert error is None, error
    return float(value)


_ANSWER = "answer of another process: "


@functools.cache
def _start_to_reload() -> subprocess.Popen[str]:
    from tests.support.warm_python import warm_python

    command = [*warm_python(with_package=False), __file__, "False", "_reload_all", "[]"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.communicate)  # It ends with its standard input.
    return process


def _reload_all() -> None:
    for line in sys.stdin:
        try:
            answer = _reload(*json.loads(line)), None
        except Exception:
            answer = None, traceback.format_exc()
        print(f"\n{_ANSWER}{json.dumps(answer)}", flush=True)


def _ask(with_package: bool, function: str, *arguments: Any) -> Any:
    """Return the value of a function of this file in a new process; fail with its traceback, if it fails."""
    from tests.support.warm_python import warm_python  # which the process itself cannot import

    command = [*warm_python(with_package=with_package), __file__, str(with_package), function, json.dumps(arguments)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    # Models may print, too.
    value, error = json.loads(process.stdout.splitlines()[-1])
    assert error is None, error
    return value


def _answer_request(with_package: str, function: str, arguments: str) -> None:
    assert str(importlib.util.find_spec("gating") is not None) == with_package
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    try:
        answer = globals()[function](*json.loads(arguments)), None
    except Exception:
        answer = None, traceback.format_exc()
    print(json.dumps(answer))


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
    saved = torch.load(f"{folder}/check.pt")
    options = {"trust_remote_code": True, **saved.get("options", {})}
    load = functools.partial(getattr(transformers, auto_class).from_pretrained, **options)
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
    _answer_request(*sys.argv[1:])
