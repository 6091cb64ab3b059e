"""Settings of a resumed run: those of its folder, overridden by the command line.

A folder may come from somebody else. Its numbers, names and data paths are trusted; the functions and classes to call
come from the command and its configuration.
"""

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from gating.compact.files import walk
from gating.errors import InputError
from gating.run.folder.checkpoints import has_own_checkpoints
from gating.run.folder.contents import CONFIG
from gating.run.folder.effect import OF_COMMAND
from gating.run.folder.own_files import check_links
from gating.run.folder.resume import named_run
from gating.run.folder.stored_settings import MEASURED, read_settings_of, stored_checkpoint_folder
from gating.run.settings.options import Option, names_given, read_options
from gating.run.settings.read import resolving
from gating.tracking.redaction import HIDDEN

__all__ = ["with_recalled"]

# The current phase has its checkpoints here.
_OWN_PLACE = "${paths.checkpoints}/${phase}"

# Keys of Hydra: targets, and ways to call them.
_KEY = re.compile(r"_[a-z]+_")
_IN_LIST = re.compile(r"\.\d+(?=\.|$)")
_FORMAT = "model.use_safetensors"
# Settings of models by which transformers downloads or runs code, or reads pickles.
_MODEL = re.compile(
    r"(model|distillation)\..*(trust_remote_code|auto_map|code_revision|transformers_weights|quantization_config)"
)
_KERNEL = re.compile(r"(model|distillation)\..*(attn|experts)_implementation")


def with_recalled(composed: Mapping[str, Any], overrides: Sequence[str], *, conf: Path) -> dict[str, Any]:
    """Return the settings of a command, with those of the run that it resumes which its command line does not set.

    A command thus needs only ``resume=DIR``. With ``resume=auto``, or where it resumes no run, the command is whole.

    Raises:
        InputError: There is no such run, a setting was a secret, or a setting is not trusted.
    """
    with resolving():
        cfg = OmegaConf.create(dict(composed))
        resume, ckpt_path = OmegaConf.select(cfg, "resume"), OmegaConf.select(cfg, "ckpt_path")
    # The validation of all settings refuses values that are no texts.
    is_whole = ckpt_path is None and resume in (None, "auto")
    if is_whole or not all(value is None or isinstance(value, str) for value in (resume, ckpt_path)):
        return dict(composed)
    options = read_options(conf)
    given = names_given(overrides, options)
    folder = named_run(resume, ckpt_path)
    stored = read_settings_of(folder)
    check_links(folder, stored_checkpoint_folder(folder, stored))
    stored = _relocated(stored, folder, given)
    taken = {name: value for name, value in stored.items() if name in composed and name not in OF_COMMAND}
    _check_trusted(taken, folder=folder, given=given, command=composed, options=options)
    taken["paths"] = {**composed["paths"], **taken["paths"]}
    if "allow_changed" in taken["data"]:
        taken["data"]["allow_changed"] = False  # Each command allows it anew.
    for name in (name for name in given if name.partition(".")[0] not in OF_COMMAND):
        _override(taken, composed, name.split("."))
    if HIDDEN in str(taken):
        raise InputError(
            f"The run in {folder} had a secret among its settings, which is not kept there: give the whole command "
            f"again, with output_dir={folder} resume=auto."
        )
    return {**composed, **taken, **({} if _is_given("output_dir", given) else {"output_dir": str(folder)})}


def _relocated(stored: dict[str, Any], folder: Path, given: Sequence[str]) -> dict[str, Any]:
    """Return the stored settings of a run, adapted to the current path of its folder, with checkpoints of its own."""
    checkpoints = stored_checkpoint_folder(folder, stored)
    if not _is_given("paths.checkpoints", given) and not has_own_checkpoints(folder, checkpoints):
        again = shlex.quote(f"paths.checkpoints={stored['paths'].get('checkpoints')}")
        raise InputError(
            f"The run in {folder} has its checkpoints in {checkpoints}, which may be those of another run. If they are "
            f"its own, confirm with: python train.py resume={folder} {again}"
        )
    objective = stored["objective"]
    if objective.get("speedup") is not None:
        # They were measured from the speedup.
        before = {**dict.fromkeys(MEASURED), "cost": "macs"}
        objective = objective | {name: value for name, value in before.items() if name in objective}
    # Callbacks are stored with the folder of one phase.
    place = f"{stored['paths'].get('checkpoints')}/{stored.get('phase')}"
    callbacks = _replace(stored["callbacks"], place, _OWN_PLACE)
    # Loggers of a user are stored with the folder that the run had.
    logger = _replace(stored["logger"], str(stored.get("output_dir")), str(folder))
    paths = {"checkpoints": str(checkpoints)}
    return {**stored, "objective": objective, "callbacks": callbacks, "logger": logger, "paths": paths}


def _replace(settings: Any, old: str, new: str) -> Any:
    """Return settings with each value equal to ``old`` replaced by ``new``."""
    if isinstance(settings, Mapping):
        return {name: _replace(value, old, new) for name, value in settings.items()}
    return new if settings == old else settings


def _override(settings: dict[str, Any], other: Mapping[str, Any], path: list[str]) -> None:
    """Copy a setting or group from other settings, in place; remove it if they lack it."""
    name, *rest = path
    if rest and isinstance(settings.get(name), dict) and isinstance(other.get(name), Mapping):
        _override(settings[name], other[name], rest)
    elif name in other:
        settings[name] = other[name]
    else:
        settings.pop(name, None)


def _check_trusted(
    settings: Mapping[str, Any],
    *,
    folder: Path,
    given: Sequence[str],
    command: Mapping[str, Any],
    options: list[Option],
) -> None:
    """Raise ``InputError`` for a dangerous setting of a run's folder that neither the command nor its options have."""
    sources = [("", command), *((option.package, option.settings) for option in options)]
    known = set[tuple[str, str]]().union(*(_known(place, source, settings) for place, source in sources))
    for name, value in walk(dict(settings)):
        reason = (
            None
            if _is_given(name, given) or (name, _text(value)) in known
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


def _is_given(name: str, given: Iterable[str]) -> bool:
    """Return whether a command line sets a setting, or a group around it."""
    return any(name == other or name.startswith(f"{other}.") for other in given)


def _reason_to_distrust(name: str, value: object, settings: Mapping[str, Any]) -> str | None:
    """Return the reason to distrust a setting of a folder; None if it is safe."""
    if _KEY.fullmatch(name.rpartition(".")[2]):
        return "determines which code is called"
    if value == _OWN_PLACE:
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
