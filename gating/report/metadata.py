"""Metadata of model cards, as hubs read them: base model, license, task, data and results."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import EvalResult, ModelCardData
from transformers import PreTrainedModel
from transformers.modelcard import TASK_MAPPING

from gating.storage.tables import read_table
from gating.storage.transfer import cached_card, invalid_name, snapshot_of

_SOURCES = "gating.data.sources."
_TAG = "head-gating"
# Metrics with another name on the hub.
_METRICS = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}
# Values from the card of another model: one line of text.
_LINE = re.compile(r"\S.{,200}")
_LICENSE = ("license", "license_name", "license_link")
# A task of transformers that the hub does not list.
_UNLISTED = "text2text-generation"


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


def card_metadata(
    model: PreTrainedModel,
    *,
    name: str,
    data: EvaluatedData | None,
    scores: Sequence[tuple[str, str, float]],
    base_model: str | None = None,
    online: bool = False,
    library: str = "transformers",
) -> ModelCardData:
    """Return the metadata of a model card.

    Args:
        model: The compact model.
        name: Name of the model.
        data: Data set of the scores; without it the metadata has no results.
        scores: Split (``validation`` or ``test``), metric and value.
        base_model: Name of the base model on the hub; by default as the model's folder says.
        online: Whether the card of the base model, for its license, may be downloaded.
        library: The library that loads the model, ``transformers`` or ``sentence-transformers``.
    """
    found, licenses = _base_of(model, online=online)
    task = "sentence-similarity" if library == "sentence-transformers" else _task_of(model)
    results = [] if data is None else [_result(task or "other", data, *score) for score in scores]
    return ModelCardData(
        base_model=base_model or found,
        library_name=library,
        **licenses,
        pipeline_tag=None if task == _UNLISTED else task,
        tags=[_TAG, "pruned"],
        datasets=[data.hub_id] if data is not None and data.hub_id else None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=name if results else None,
        eval_results=results or None,
    )


def _result(task: str, data: EvaluatedData, split: str, metric: str, value: float) -> EvalResult:
    return EvalResult(
        task_type=task,
        dataset_type=data.hub_id or data.name,
        dataset_name=data.name,
        dataset_config=data.config,
        dataset_split=data.splits.get(split, split),
        metric_type=_METRICS.get(metric, metric),
        metric_name=f"{split} {metric}",
        metric_value=round(value, 6),
    )


def _task_of(model: PreTrainedModel) -> str | None:
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


def _base_of(model: PreTrainedModel, *, online: bool) -> tuple[str | None, dict[str, Any]]:
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
    if hub_name is None or _TAG in str(described.get("tags")):
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


def training_notes(*, about: str | None = None) -> list[str]:
    """Return the sentence of a card on the training data; none without a description.

    >>> training_notes(about="sentences of a novel, public domain.")
    ['Trained on: sentences of a novel, public domain.']
    """
    return [] if about is None else [f"Trained on: {about}"]


def _name_of(path: Path) -> str:
    """Return the name of local data: of its folder, if the file is called ``train``."""
    return path.parent.name if path.stem == "train" else path.stem
