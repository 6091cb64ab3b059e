"""Refusal of settings from a run's folder that could run or download code, or lead to other files.

A folder may come from somebody else. Its numbers, names and data paths are trusted; the functions and classes to call
come from the command and its configuration.
"""

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gating.compact.files import walk
from gating.errors import InputError
from gating.run.folder.contents import CONFIG
from gating.run.settings.options import Option

__all__ = ["OWN_PLACE", "check_trusted", "is_given"]

# Checkpoints of the current phase.
OWN_PLACE = "${paths.checkpoints}/${phase}"

# Keys of Hydra: targets, and ways to call them.
_KEY = re.compile(r"_[a-z]+_")
_IN_LIST = re.compile(r"\.\d+(?=\.|$)")
_FORMAT = "model.use_safetensors"
# Settings of models by which transformers downloads or runs code, or reads pickles.
_MODEL = re.compile(
    r"(model|distillation)\..*(trust_remote_code|auto_map|code_revision|transformers_weights|quantization_config)"
)
_KERNEL = re.compile(r"(model|distillation)\..*(attn|experts)_implementation")


def check_trusted(
    settings: Mapping[str, Any],
    *,
    folder: Path,
    given: Sequence[str],
    command: Mapping[str, Any],
    options: list[Option],
) -> None:
    """Check that dangerous settings of a run's folder are also in the command or its configuration.

    Args:
        settings: Settings from the folder.
        folder: The run's folder, for messages.
        given: Dotted names of the settings that the command line sets, which override the folder's.
        command: Settings of the command without the folder's.
        options: All options of its configuration folders.

    Raises:
        InputError: A setting is not trusted; the message has the override that repeats it.
    """
    sources = [("", command), *((option.package, option.settings) for option in options)]
    known = set[tuple[str, str]]().union(*(_known(place, source, settings) for place, source in sources))
    for name, value in walk(dict(settings)):
        reason = (
            None
            if is_given(name, given) or (name, _text(value)) in known
            else _reason_to_distrust(name, value, settings)
        )
        if reason is not None:
            shown = str(value) if str(value).isprintable() else ascii(value)
            # Overrides cannot name items of lists.
            listed = _IN_LIST.search(name)
            again = f"++{name[: listed.start()]}=[...]" if listed else f"++{name}={shown}"
            raise InputError(
                f"{folder / CONFIG} has {name}={shown}, which {reason}, and neither this command nor its "
                f"configuration has this value there. If you trust it, give it again: python train.py resume={folder} "
                f"{shlex.quote(again)}"
            )


def is_given(name: str, given: Iterable[str]) -> bool:
    """Return whether a command line sets a setting, or a group around it."""
    return any(name == other or name.startswith(f"{other}.") for other in given)


def _reason_to_distrust(name: str, value: object, settings: Mapping[str, Any]) -> str | None:
    """Return the reason to distrust a setting of a folder; None if it is safe."""
    if _KEY.fullmatch(name.rpartition(".")[2]):
        return "determines which code is called"
    if value == OWN_PLACE:
        return None
    if isinstance(value, str) and "${" in value:
        return "is an interpolation"
    if name == _FORMAT and value is not True:
        return "allows weights in a format that can run code"
    if (_MODEL.fullmatch(name) and value is not None) or (_KERNEL.fullmatch(name) and "/" in str(value)):
        return "makes transformers load code or other files"
    group, _, rest = name.partition(".")
    callback = settings[group].get(rest.removesuffix(".dirpath")) if group == "callbacks" else None
    if rest.endswith(".dirpath") and isinstance(callback, Mapping) and "gating." in str(callback.get("_target_")):
        return "is not the folder of this run's checkpoints"
    return None


def _known(place: str, source: Mapping[str, Any], settings: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Return the names and values of a trusted source; other weight formats only for the source's own model."""
    known = {(name, _text(value)) for name, value in walk(dict(source), within=f"{place}." if place else "")}
    is_about_model = ("model.name", _text(settings["model"].get("name"))) in known
    return known if is_about_model else {pair for pair in known if pair[0] != _FORMAT}


def _text(value: object) -> str:
    return json.dumps(value, default=repr)
