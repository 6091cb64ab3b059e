"""Compact folders, loaded where this package is not installed.

A server imports torch and transformers once and forks for each folder, so that each is loaded as in a fresh process.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

__all__ = ["auto_class_of", "difference_elsewhere", "save_for_elsewhere"]


def auto_class_of(model: Any) -> str:
    """Return the Auto class that picks the model's class for its configuration."""
    auto_map: dict[str, str] = model.config.auto_map
    return next(auto for auto, path in auto_map.items() if path.endswith("." + type(model).__name__))


def save_for_elsewhere(model: Any, folder: Path, batch: dict[str, Any], **options: Any) -> None:
    """Save a compact model with a batch and its finite outputs, for :func:`difference_elsewhere`.

    ``options`` are arguments of :func:`gating.save_compact`.
    """
    import torch

    import gating

    outputs = _outputs_of(model.eval(), batch)
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
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps([str(folder), auto_class]) + "\n")
    server.stdin.flush()
    answer = json.loads(server.stdout.readline())
    assert isinstance(answer, float), answer
    return answer


@functools.cache
def _server() -> subprocess.Popen[str]:
    """Start the server of this process; it ends with its standard input."""
    home = tempfile.TemporaryDirectory(prefix="head-gating-elsewhere-")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_MODULES_CACHE")}
    environment |= {"HF_HOME": home.name, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    # -P keeps this folder out of the import path.
    server = subprocess.Popen(
        [sys.executable, "-P", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        cwd=home.name,
        text=True,
    )
    atexit.register(home.cleanup)
    atexit.register(server.communicate)
    return server


def _serve() -> None:
    sys.modules["gating"] = None  # type: ignore[assignment]  # as where it is not installed
    import torch
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    # What each folder needs, before the processes part.
    for name in ("AutoModel", "PreTrainedModel", "GenerationMixin"):
        getattr(transformers, name)
    # Whatever a model prints goes to the standard errors instead.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        process = os.fork()
        if process:
            os.waitpid(process, 0)
            continue
        try:
            answer: float | str = _reload(*json.loads(line))
        except Exception:
            answer = traceback.format_exc()
        print(json.dumps(answer), file=answers, flush=True)
        os._exit(0)


def _reload(folder: str, auto_class: str) -> float:
    import torch
    import transformers

    load = functools.partial(getattr(transformers, auto_class).from_pretrained, trust_remote_code=True)
    saved = torch.load(f"{folder}/check.pt")
    first = load(folder)
    first.save_pretrained(f"{folder}/again")
    total = 0.0
    for model in (first, load(f"{folder}/again")):
        outputs = _outputs_of(model, saved["batch"])
        total += sum(float((outputs[key] - value).abs().max()) for key, value in saved["expected"].items())
    return total


def _outputs_of(model: Any, batch: dict[str, Any]) -> Any:
    import torch

    torch.manual_seed(0)  # Masked auto-encoders draw which patches to hide.
    with torch.no_grad():
        return model(**batch)


if __name__ == "__main__":
    _serve()
