"""Loading saved models in a fresh process and comparing their outputs."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["SavedModel", "reload"]

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class SavedModel:
    """Where a model was saved, and how it is loaded.

    Attributes:
        path: Its file or folder.
        how: ``pickle`` (``torch.load`` of a whole model), ``load_compact`` or ``from_pretrained``.
        architecture: Its class in transformers.
    """

    path: str
    how: str
    architecture: str


def reload(models: Mapping[str, SavedModel], batch: Mapping[str, Tensor]) -> dict[str, Tensor | str]:
    """Load models elsewhere and return by name their logits, or the error in one line."""
    with tempfile.TemporaryDirectory() as scratch:
        job, answers = f"{scratch}/job.pt", f"{scratch}/answers.pt"
        models_there = {name: asdict(model) for name, model in models.items()}
        torch.save({"models": models_there, "batch": dict(batch), "threads": torch.get_num_threads()}, job)
        environment = os.environ | {
            "HF_MODULES_CACHE": f"{scratch}/modules",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.rivals.reloading", job, answers]
        subprocess.run(command, cwd=scratch, env=environment, check=True, capture_output=True)
        loaded: dict[str, Tensor | str] = torch.load(answers)
    return loaded


def main() -> None:
    """Answer the job of the first argument into the file of the second."""
    job = torch.load(sys.argv[1])
    torch.set_num_threads(job["threads"])
    answers: dict[str, Tensor | str] = {}
    for name, model in job["models"].items():
        try:
            with torch.inference_mode():
                answers[name] = _load(SavedModel(**model)).eval()(**job["batch"]).logits.clone()
        except Exception as error:
            answers[name] = f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
    torch.save(answers, sys.argv[2])


def _load(model: SavedModel) -> torch.nn.Module:
    import transformers

    transformers.logging.set_verbosity_error()
    if model.how == "pickle":
        return torch.load(model.path, weights_only=False)
    if model.how == "load_compact":
        import gating

        return gating.load_compact(model.path)
    # Its own class for what transformers knows, the folder's for what carries code of its own.
    auto_class = "AutoModelFor" + model.architecture.partition("For")[2]
    return getattr(transformers, auto_class).from_pretrained(model.path, trust_remote_code=True)


if __name__ == "__main__":
    main()
