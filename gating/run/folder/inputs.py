"""Data, model and teacher that a run began with, by their content, and the check that it resumes with the same."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from gating.errors import InputError
from gating.run.folder.checkpoints import has_checkpoint
from gating.run.folder.contents import INPUTS
from gating.run.folder.stored_settings import local_places
from gating.storage.atomic import write_atomically
from gating.storage.identity import NUM_ROWS, folder_digests, table_digests
from gating.storage.same_settings import find_difference

__all__ = ["Inputs", "check_inputs", "data_difference", "describe_inputs", "read_inputs", "write_inputs"]

# Paths and digests are kept by split, and by setting for folders.
Inputs = Mapping[str, Any]

_log = logging.getLogger(__name__)

# Encoded columns in the words of a user.
_COLUMNS = {
    "labels": "labels",
    "input_ids": "texts, or their tokens",
    "metric_target": "target texts",
    "start_positions": "answers",
    "end_positions": "answers",
    "image": "images",
}
_REMEDY = "Restore it, begin another run in another output_dir, or go on with data.allow_changed=true."


def describe_inputs(
    settings: Mapping[str, Any], splits: Mapping[str, Dataset], *, num_rows: Mapping[str, int], classes: Any
) -> dict[str, Any]:
    """Return the data of a run, and the folders of its model, tokenizer and teacher.

    The rows of each split are counted before they are encoded.
    """
    places = local_places(settings)
    folders = {name: path for name, path in places.items() if not name.startswith("data.") and path.is_dir()}
    return {
        "places": {name: str(path) for name, path in places.items()},
        "data": {
            split: {**(table_digests(_without_embeddings(table)) or {}), NUM_ROWS: num_rows.get(split, len(table))}
            for split, table in splits.items()
        },
        "classes": None if classes is None else [str(name) for name in classes],
        "folders": {name: folder_digests(path) for name, path in folders.items()},
    }


def _without_embeddings(table: Dataset) -> Dataset:
    """Return a table without the embeddings of a teacher: it is recorded itself, and other devices round others."""
    return table.remove_columns([name for name in table.column_names if name.endswith("_embeddings")])


def read_inputs(folder: Path) -> dict[str, Any] | None:
    """Return the inputs that a run began with; None if there is no record of them.

    Raises:
        InputError: The record is damaged.
    """
    path = folder / INPUTS
    if not path.is_file():
        return None
    try:
        inputs = json.loads(path.read_text(encoding="utf-8"))
        tables = [inputs[name] for name in ("places", "data", "folders")]
        digests = [part for name in ("data", "folders") for part in dict(inputs[name]).values()]
        if all(isinstance(table, dict) for table in (*tables, *digests)) and isinstance(inputs["classes"], list | None):
            return dict(inputs)
        reason = "it does not have the inputs of a run"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error)
    raise InputError(f"{path} cannot be read ({reason}). Restore it, or go on with data.allow_changed=true.")


def write_inputs(folder: Path, inputs: Inputs) -> None:
    """Write the record of a run's inputs."""
    write_atomically(folder / INPUTS, json.dumps(inputs, indent=1, ensure_ascii=False) + "\n")


def check_inputs(folder: Path, inputs: Inputs, *, allow_changed: bool = False) -> None:
    """Check that a resumed run has the data, model and teacher that it began with.

    Raises:
        InputError: Something differs, or there is no record to compare with.
    """
    changed = None
    try:
        before = read_inputs(folder)
        if before is not None:
            changed = _difference(before, inputs)
        elif has_checkpoint(folder):
            changed = f"{folder / INPUTS} is missing, the record of the data that the run began with"
    except InputError as error:
        if not allow_changed:
            raise
        changed = str(error)
    if changed is None:
        return
    if not allow_changed:
        raise InputError(f"The run in {folder} cannot resume with other data: {changed}. {_REMEDY}")
    _log.warning(f"The run in {folder} goes on with other data (data.allow_changed=true): {changed}.")


def data_difference(before: Inputs, inputs: Inputs, *, split: str) -> str | None:
    """Return the difference of a split in two runs, as a sentence without its period; None if it is equal."""
    old, new = before["data"].get(split), inputs["data"].get(split)
    if old is None or new is None:
        return f"there {'is' if old is None else 'was'} {split} data {'now' if old is None else 'before, and now none'}"
    changed = find_difference(old, new)
    if changed is None:
        return None
    name = changed[0]
    where = f"the {split} data{_place_of(before, inputs, split)}"
    if name == NUM_ROWS:
        return f"{where} has {new[NUM_ROWS]} rows, and had {old.get(NUM_ROWS)}"
    same = "" if old.get(NUM_ROWS) != new[NUM_ROWS] else f" in its {new[NUM_ROWS]} rows"
    return f"{where} has other {_COLUMNS.get(name, name)}{same}"


def _difference(before: Inputs, now: Inputs) -> str | None:
    if before["classes"] != now["classes"]:
        return f"the classes are {_names(now['classes'])}, and were {_names(before['classes'])}"
    for split in {**before["data"], **now["data"]}:
        found = data_difference(before, now, split=split)
        if found is not None:
            return found
    for name in (name for name in before["folders"] if name in now["folders"]):
        changed = find_difference(before["folders"][name], now["folders"][name])
        if changed is not None:
            return f"{name}={now['places'].get(name)} has another {changed[0]}{_former(before, now, name)}"
    return None


def _names(classes: Any) -> str:
    return ", ".join(map(ascii, classes[:20])) if classes else "unknown"


def _place_of(before: Inputs, now: Inputs, split: str) -> str:
    """Return the file of a split, or the folder of the data set, in parentheses."""
    names = [f"data.{split}", "data.train", "data.path"]
    name = next((name for name in names if name in now["places"]), None)
    return "" if name is None else f" ({name}={now['places'][name]}{_former(before, now, name)})"


def _former(before: Inputs, now: Inputs, name: str) -> str:
    old = before["places"].get(name)
    return "" if old in (None, now["places"].get(name)) else f", before {old}"
