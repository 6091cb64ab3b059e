"""Inputs of a run: its data, model and teacher by their content, which must be the same when it resumes."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from gating.errors import InputError
from gating.run.folder import INPUTS
from gating.run.settings import Settings
from gating.storage.identity import folder_digests, leaves, table_digests

_log = logging.getLogger(__name__)


def describe_inputs(settings: Settings, splits: Mapping[str, Dataset], *, classes: Any) -> dict[str, Any]:
    """Return digests of the splits, before a tokenizer has a part in them, and of the folders that a run reads."""
    groups = {"model": settings.model, "distillation": settings.distillation, "task": settings.task}
    folders = {name: Path(value) for name, value in leaves(groups) if isinstance(value, str) and os.path.isabs(value)}
    return {
        "examples": {split: table_digests(table) for split, table in splits.items()},
        "classes": None if classes is None else [str(name) for name in classes],
        "folders": {name: folder_digests(path) for name, path in folders.items() if path.is_dir()},
    }


def read_inputs(folder: Path) -> dict[str, Any]:
    """Return the inputs that a run began with; empty tables if there is no record that can be read."""
    try:
        inputs = json.loads((folder / INPUTS).read_text(encoding="utf-8"))
        tables = {name: {key: dict(one) for key, one in inputs[name].items()} for name in ("examples", "folders")}
        return {"budget": inputs.get("budget"), "classes": inputs["classes"], **tables}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return {"examples": {}, "classes": None, "folders": {}, "budget": None}


def check_inputs(
    folder: Path, before: Mapping[str, Any], inputs: Mapping[str, Any], *, allow_changed: bool = False
) -> None:
    """Raise ``InputError`` if a run began with other data, another model or teacher, or has no record of them."""
    splits = {**before["examples"], **inputs["examples"]}
    changed = [f"data.{split}" for split in splits if data_differ(before, inputs, split)]
    changed += ["the classes"] if before["classes"] != inputs["classes"] else []
    common = before["folders"].keys() & inputs["folders"].keys()
    changed += [name for name in sorted(common) if before["folders"][name] != inputs["folders"][name]]
    if not changed:
        return
    problem = f"the contents of {' and '.join(changed)} differ from those in {folder / INPUTS}"
    if not before["examples"]:
        problem = f"{folder / INPUTS}, with what it began with, is missing, damaged or of an earlier version"
    if not allow_changed:
        raise InputError(
            f"The run in {folder} cannot resume: {problem}. Restore them, begin another run in another output_dir, or "
            "go on with data.allow_changed=true."
        )
    _log.warning(f"The run in {folder} goes on with data.allow_changed=true: {problem}.")


def data_differ(before: Mapping[str, Any], inputs: Mapping[str, Any], split: str) -> bool:
    """Return whether a split of two runs differs in its columns, in their content or in its number of rows."""
    return bool(before["examples"].get(split) != inputs["examples"].get(split))
