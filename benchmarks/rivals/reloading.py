"""Loading saved models in a fresh process.

    python -m benchmarks.rivals.reloading JOB ANSWERS

The job, written with ``torch.save``, has a ``batch`` and ``models``: by name the path of each, how it is loaded
(``pickle``, ``load_compact`` or ``from_pretrained``), and its class in transformers. Answers are logits or errors.
"""

import sys
import tempfile
from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.measuring import run_python

# Path, way of loading, and class of a model.
Saved = tuple[str, str, str]


def reload(models: Mapping[str, Saved], batch: Mapping[str, Tensor]) -> dict[str, Tensor | str]:
    """Load models elsewhere and return by name their logits, or the error in one line."""
    with tempfile.TemporaryDirectory() as scratch:
        job, answers = f"{scratch}/job.pt", f"{scratch}/answers.pt"
        torch.save({"models": dict(models), "batch": dict(batch)}, job)
        environment = {"HF_MODULES_CACHE": f"{scratch}/modules", "HF_HUB_OFFLINE": "1"}
        run_python("-W", "ignore", "-m", "benchmarks.rivals.reloading", job, answers, **environment)
        return torch.load(answers)


def main() -> None:
    """Answer the job of the first argument into the file of the second."""
    job = torch.load(sys.argv[1])
    answers: dict[str, Tensor | str] = {}
    for name, saved in job["models"].items():
        try:
            with torch.inference_mode():
                answers[name] = _load(*saved).eval()(**job["batch"]).logits.clone()
        except Exception as error:
            answers[name] = f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
    torch.save(answers, sys.argv[2])


def _load(path: str, how: str, architecture: str) -> torch.nn.Module:
    import transformers

    transformers.logging.set_verbosity_error()
    if how == "pickle":
        return torch.load(path, weights_only=False)
    if how == "load_compact":
        import gating

        return gating.load_compact(path)
    # Its own class for what transformers knows, the folder's for what carries code of its own.
    auto_class = "AutoModelFor" + architecture.partition("For")[2]
    return getattr(transformers, auto_class).from_pretrained(path, trust_remote_code=True)


if __name__ == "__main__":
    main()
