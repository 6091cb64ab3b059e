"""Name of a run's data set on the hub, for the model card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gating.report.metadata import EvaluatedData

__all__ = ["describe_data"]

_SOURCES = "gating.data.sources."


def describe_data(values: Mapping[str, Any]) -> EvaluatedData:
    """Return the data set of a run.

    Args:
        values: Settings of the group ``data``.

    Example:
        >>> describe_data({"_target_": "gating.data.sources.load_glue", "name": "sst2"}).hub_id
        'nyu-mll/glue'
        >>> describe_data({"_target_": "my_module.load_reviews", "folder": "reviews"}).name
        'reviews'
    """
    source = str(values["_target_"])
    if source == f"{_SOURCES}load_glue":
        # The labels of the test splits are not published.
        test = "validation_matched" if values["name"] == "mnli" else "validation"
        splits = {"validation": "train", "test": test}
        return EvaluatedData(f"GLUE {values['name']}", "nyu-mll/glue", values["name"], splits)
    path = values.get("path")
    if source == f"{_SOURCES}load_hub" and isinstance(path, str) and not Path(path).expanduser().exists():
        train = values.get("train_split") or "train"
        splits = {split: str(values.get(f"{split}_split") or train) for split in ("validation", "test")}
        return EvaluatedData(path, path, values.get("name"), splits)
    file = path or values.get("train")
    if isinstance(file, str):
        return EvaluatedData(_name_of(Path(file).expanduser().resolve()))
    return EvaluatedData(source.rpartition(".")[2].removeprefix("load_"))


def _name_of(path: Path) -> str:
    """Return the name of local data: of its folder, if the file is called ``train``."""
    return path.parent.name if path.stem == "train" else path.stem
