"""Trained runs: a dense one, one without half of its heads, and one without half of its heads and neurons."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.measuring import ROOT

__all__ = ["DECODERS", "ENCODERS", "settings_of", "train"]

_DECODER = (
    "experiment=shakespeare-llama",
    # A multiple of 32, so that all matrices can have 8 bits.
    "+model.config.intermediate_size=384",
    "trainer.max_epochs=3",
)
_ENCODER = ("data=files", "trainer.max_epochs=3")
_BOTH = "gates.units=[heads,neurons]"

# Model -> settings of train.py.
DECODERS: Mapping[str, tuple[str, ...]] = {
    "dense": (*_DECODER, "objective=none"),
    "heads": (*_DECODER, "objective.num_heads=16"),
    "heads and neurons": (
        *_DECODER,
        _BOTH,
        "gates.group_size=32",
        "objective.num_heads=16",
        "objective.num_neurons=768",
    ),
}
ENCODERS: Mapping[str, tuple[str, ...]] = {
    "dense": (*_ENCODER, "objective=none"),
    "heads": (*_ENCODER, "objective.num_heads=36"),
    "heads and neurons": (*_ENCODER, _BOTH, "objective.num_heads=36", "objective.num_neurons=4608"),
}


def settings_of(kind: str, data: Path) -> list[str]:
    """Return the settings of the data of a kind of run.

    Args:
        kind: ``decoder`` or ``encoder``.
        data: Folder with ``tinyshakespeare`` and ``trec``.
    """
    if kind == "decoder":
        return [f"paths.data={data.resolve()}"]
    return [f"data.{split}={data.resolve()}/trec/{split}.tsv" for split in ("train", "validation", "test")]


def train(kind: str, model: str, *, data: Path, runs: Path) -> Path:
    """Return the folder of a finished run, which is trained if it is not there.

    Args:
        kind: ``decoder`` or ``encoder``.
        model: One of the models above.
        data: Folder with the data.
        runs: Folder of the runs.
    """
    folder = runs / f"{kind}-{model.replace(' ', '-')}"
    if not (folder / "metrics.json").is_file():
        settings = {"decoder": DECODERS, "encoder": ENCODERS}[kind][model]
        places = [*settings_of(kind, data), f"output_dir={folder}", "resume=auto", "logger=csv", "callbacks=none"]
        subprocess.run([sys.executable, str(ROOT / "train.py"), *settings, *places], check=True)
    return folder
