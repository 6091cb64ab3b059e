"""Origin of a model for its card: base model, license, task and data."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
from transformers import PreTrainedModel
from transformers.modelcard import TASK_MAPPING

from gating.storage.files import read_table
from gating.storage.hub import cached_card, invalid_name, snapshot_of

_SOURCES = "gating.data.sources."
# Tag of the cards of compact models.
TAG = "head-gating"
# Values from the card of another model: one line of text.
_LINE = re.compile(r"\S.{,200}")
_LICENSE = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class EvaluatedData:
    """The data set of a compact model's metrics.

    Attributes:
        name: Name to show.
        hub_id: Name on the hub; None for local data.
        config: Configuration of a data set on the hub that has several.
        splits: Split of the data set that each of the run's splits, ``validation`` and ``test``, is or was drawn from;
            the same name by default.
    """

    name: str
    hub_id: str | None = None
    config: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)


def is_sentence_folder(folder: Path) -> bool:
    """Return whether a folder has the modules of sentence-transformers around its model, but for a cross-encoder's."""
    kind = read_table(folder / "config_sentence_transformers.json").get("model_type", "SentenceTransformer")
    return (folder / "modules.json").is_file() and kind == "SentenceTransformer"


def task_of(model: PreTrainedModel) -> str | None:
    """Return the name of a model's task on the hub; None if transformers has none for it."""
    name = type(model).__name__
    tasks: dict[str, Any] = TASK_MAPPING
    of_model = [
        task
        for task, classes in tasks.items()
        if any(name == found or (isinstance(found, tuple) and name in found) for found in classes.values())
    ]
    if of_model:
        # BART, which generates texts, is in the first as well.
        return min(of_model, key=lambda task: task == "fill-mask")
    return "feature-extraction" if name.endswith("Model") and model.main_input_name == "input_ids" else None


def base_of(model: PreTrainedModel, *, online: bool) -> tuple[str | None, dict[str, Any]]:
    """Return the name of the base model on the hub, and its license as far as its card is on this machine."""
    source, hub_name = str(model.name_or_path or ""), None
    readme = Path(source) / "README.md"
    card: Path | None = readme
    if source and Path(source).is_dir():
        if found := snapshot_of(source):
            hub_name, _ = found
            card = readme if readme.is_file() else cached_card(hub_name, online=online)[1]
    elif source and invalid_name(source) is None:
        is_cached, card = cached_card(source, online=online)
        # The path of a folder that is not there any more may look like a name on the hub.
        hub_name = source if is_cached else None
    else:
        return None, {}
    described = _read_card(card)
    if hub_name is None or TAG in str(described.get("tags")):
        # The model of a folder, or a compact one on the hub, is named after the model that it was made from.
        named = described.get("base_model", hub_name)
        hub_name = named if isinstance(named, str) and invalid_name(named) is None else None
    texts = {key: described.get(key) for key in _LICENSE}
    return hub_name, {key: text for key, text in texts.items() if isinstance(text, str) and _LINE.fullmatch(text)}


def _read_card(path: Path | None) -> dict[str, Any]:
    try:
        return (huggingface_hub.metadata_load(path) if path is not None else None) or {}
    except Exception:  # A card that others have written may hold anything.
        return {}


def describe_data(values: Mapping[str, Any]) -> EvaluatedData:
    """Return the data set of a run from its settings of the group ``data``."""
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
        # Of files that are called ``train``, the folder has the name.
        place = Path(file).expanduser().resolve()
        return EvaluatedData(place.parent.name if place.stem == "train" else place.stem)
    return EvaluatedData(source.rpartition(".")[2].removeprefix("load_"))
