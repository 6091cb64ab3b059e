"""Trained encoders: a dense one, one without half of its heads, and one without half of its heads and neurons."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.measuring import ROOT

__all__ = ["ENCODERS", "EXPORTS", "train"]

_BOTH = "gates.units=[heads,neurons]"
# Model -> settings of train.py.
ENCODERS: Mapping[str, tuple[str, ...]] = {
    "dense": ("objective=none",),
    "heads": ("objective.num_heads=36",),
    "heads and neurons": (_BOTH, "objective.num_heads=36", "objective.num_neurons=4608"),
}

# Runtime -> its export, which a run writes and scores.
EXPORTS: Mapping[str, str] = {
    "ONNX Runtime": "onnx",
    "ONNX Runtime, int8": "onnx-int8",
    "OpenVINO": "openvino",
    "OpenVINO, int8": "openvino-int8",
}


def train(model: str, *, data: Path, runs: Path) -> Path:
    """Return the folder of a finished run, which is trained if it is not there.

    Args:
        model: One of the models above.
        data: Folder with ``trec``.
        runs: Folder of the runs.
    """
    folder = runs / f"encoder-{model.replace(' ', '-')}"
    if not (folder / "metrics.json").is_file():
        files = [f"data.{split}={data.resolve()}/trec/{split}.tsv" for split in ("train", "validation", "test")]
        settings = ["data=files", *files, "trainer.max_epochs=3", *ENCODERS[model], "logger=csv", "callbacks=none"]
        settings.append(f"exports=[{','.join(EXPORTS.values())}]")
        command = [sys.executable, str(ROOT / "train.py"), *settings, f"output_dir={folder}", "resume=auto"]
        subprocess.run(command, check=True)
    return folder
