"""Files and folders that settings name, as absolute paths: a relative path means another place in another folder."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["absolute_path", "local_places", "with_absolute_paths"]

# Settings of this package's data, models and teachers that name a file or folder, or something on the hub.
_PLACES = {
    "data": ("train", "validation", "test", "path"),
    "model": ("name", "tokenizer"),
    "distillation": ("teacher",),
}
# In settings of a user's own classes, values with a slash and those of such a name are taken for paths.
_WORDS = ("file", "folder", "dir", "path", "root")


def absolute_path(value: str) -> str:
    """Return the absolute path of a file or folder; links stay."""
    return os.path.abspath(os.path.expanduser(value))


def local_places(settings: Mapping[str, Any]) -> dict[str, Path]:
    """Return the existing files and folders that settings of data, model and teacher name, by dotted name.

    Args:
        settings: All settings of a run, as plain values.
    """
    found = {}
    for group in _PLACES:
        for name, value in _strings(settings.get(group) or {}, group):
            if _is_place(settings[group], name, value):
                found[name] = Path(absolute_path(value))
    return found


def with_absolute_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with absolute paths in place of relative ones.

    Names on the hub stay, and so do paths that do not exist.

    Args:
        settings: All settings of a run, as plain values.
    """
    places = {name: str(path) for name, path in local_places(settings).items()}
    changed = {**settings, **{group: _replaced(settings.get(group), group, places) for group in _PLACES}}
    changed = {group: value for group, value in changed.items() if group in settings}
    paths = settings.get("paths")
    if isinstance(paths, Mapping):
        given = {name: absolute_path(value) for name, value in paths.items() if isinstance(value, str) and value}
        changed["paths"] = {**paths, **given}
    return changed


def _strings(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield the texts in settings with their dotted names."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _strings(inner, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _strings(inner, f"{name}.{number}")


def _is_place(settings: Mapping[str, Any], name: str, value: str) -> bool:
    group, _, inner = name.partition(".")
    target = settings.get("_target_", "gating.")
    if str(target).startswith("gating."):
        is_named = inner in _PLACES[group]
    else:
        is_named = os.sep in value or any(word in inner.lower() for word in _WORDS) or inner in _PLACES[group]
    return is_named and bool(value) and "\0" not in value and os.path.lexists(os.path.expanduser(value))


def _replaced(value: Any, name: str, places: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _replaced(inner, f"{name}.{key}", places) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replaced(inner, f"{name}.{number}", places) for number, inner in enumerate(value)]
    return places.get(name, value)
