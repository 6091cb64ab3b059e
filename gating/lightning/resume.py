"""Finding the run that a command is to go on with, and making sure that it is the same run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from gating.lightning.run_folder import is_finished, is_under_way
from gating.lightning.stored_settings import is_run, leaves, read_settings_of
from gating.redaction import HIDDEN, redact_settings

__all__ = ["find_run", "recall"]

# What may differ between a run and the command that goes on with it: none of it changes what is computed.
_FREE = (
    "output_dir",
    "overwrite",
    "resume",
    "ckpt_path",
    "phase",
    "paths",
    "logger",
    "callbacks",
    "data.num_workers",
    "optimized_metric",
    "trainer.max_time",
)


def find_run(settings: Mapping[str, Any], *, is_place_given: bool) -> Path | None:
    """Return the folder of the run to go on with; None if a new one is to begin.

    Args:
        settings: All settings of the command, as plain values.
        is_place_given: Whether the command says ``output_dir``; otherwise its default is the time of day.

    Raises:
        FileExistsError: No ``resume`` is asked for, and ``output_dir`` has an unfinished run.
        ValueError: What is asked for is no run, or a setting is another than the run's.
    """
    place, resume, ckpt_path = Path(settings["output_dir"]), settings["resume"], settings["ckpt_path"]
    if resume is None and ckpt_path is None:
        if is_place_given and is_run(place) and not is_finished(place) and not settings["overwrite"]:
            raise FileExistsError(
                f"output_dir={place} holds an unfinished run. Pass resume=auto to go on with it, or overwrite=true to "
                "begin again."
            )
        return None
    if resume == "auto" and ckpt_path is None:
        if not is_run(place):
            return None if is_place_given else _latest_like(settings, place.parent.parent)
        folder = place
    else:
        folder = _named_run(resume, ckpt_path)
        if is_place_given and place.absolute() != folder.absolute():
            raise ValueError(f"The run to go on with is in {folder}, and output_dir={place}: leave output_dir out.")
    # Secrets are not in the folder.
    changed = _difference(read_settings_of(folder), redact_settings(dict(settings)))
    if changed is not None:
        name, before, now = changed
        raise ValueError(
            f"The run in {folder} has {name}={before}, and this command {name}={now}: a run goes on with the settings "
            "that it began with. Leave it as it was, or begin another run in another output_dir."
        )
    return folder


def _named_run(resume: str | None, ckpt_path: str | None) -> Path:
    """Return the folder of the run that is named, or whose checkpoint is.

    Raises:
        ValueError: There is no such run.
    """
    if ckpt_path is None:
        return Path(str(resume))
    checkpoint = Path(ckpt_path)
    if not checkpoint.is_file():
        raise ValueError(f"ckpt_path={checkpoint}: there is no such file.")
    folder = next((parent for parent in checkpoint.parents if is_run(parent)), None)
    if folder is None:
        raise ValueError(f"ckpt_path={checkpoint} is in no folder of a run, which its settings are read from.")
    if resume not in (None, "auto") and Path(str(resume)).absolute() != folder.absolute():
        raise ValueError(f"ckpt_path={checkpoint} is not of the run in resume={resume}: leave one of them out.")
    return folder


def _is_free(name: str) -> bool:
    """Say whether a setting may be another one when a run goes on: what is computed does not depend on it."""
    return any(name == free or name.startswith(f"{free}.") for free in _FREE)


def recall(overrides: Sequence[str], *, resume: str | None, ckpt_path: str | None) -> dict[str, Any]:
    """Return the settings to take from the folder of a run that is named, where a command says nothing else about it.

    So ``resume=DIR`` is all that one has to remember.

    Args:
        overrides: What the command line sets, as Hydra has it.
        resume: ``auto`` or the folder.
        ckpt_path: One of its checkpoints.

    Returns:
        Settings by name, to replace whole groups; none if the command has settings of its own or names no run.

    Raises:
        ValueError: There is no such run, or a secret was among its settings.
    """
    if not all(given is None or isinstance(given, str) for given in (resume, ckpt_path)):
        return {}  # Which the check of all settings tells.
    if (resume in (None, "auto") and ckpt_path is None) or not all(_is_free(_name(line)) for line in overrides):
        return {}
    folder = _named_run(resume, ckpt_path)
    settings = read_settings_of(folder)
    if HIDDEN in str(settings):
        raise ValueError(
            f"The run in {folder} had a secret among its settings, which is not kept there: give the whole command "
            f"again, with output_dir={folder} resume=auto."
        )
    if settings["objective"].get("speedup") is not None:
        settings["objective"]["num_heads"] = None  # It stands for it.
    said = {_name(line).partition(".")[0] for line in overrides}
    taken = {name: value for name, value in settings.items() if not _is_free(name) and name != "callbacks"}
    # Who kept a run off W&B, or its checkpoints on another disk, did so for good; a folder may have been moved.
    taken |= {"logger": settings["logger"]} if "logger" not in said else {}
    checkpoints = str(settings["paths"]["checkpoints"])
    if "paths" not in said and not Path(checkpoints).is_relative_to(str(settings["output_dir"])):
        taken["paths"] = settings["paths"]
    if "callbacks" not in said:
        # They have been told the place of one phase.
        taken["callbacks"] = _replace(
            settings["callbacks"], f"{checkpoints}/{settings['phase']}", "${paths.checkpoints}/${phase}"
        )
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        group, _, name = _name(override.input_line or "").partition(".")
        if name and group in taken:
            taken[group] = {**taken[group], name: override.value()}
    return {**taken, "output_dir": str(folder)}


def _replace(settings: Any, old: str, new: str) -> Any:
    """Return settings with another text in place of one that is the whole of a value."""
    if isinstance(settings, Mapping):
        return {name: _replace(value, old, new) for name, value in settings.items()}
    return new if settings == old else settings


def _latest_like(settings: Mapping[str, Any], outputs: Path) -> Path | None:
    """Return the latest unfinished run with these settings, secrets aside, that no process is at."""
    shown = redact_settings(dict(settings))
    for folder in sorted(outputs.glob("*/*"), reverse=True):
        if not is_run(folder) or is_finished(folder):
            continue
        try:
            changed = _difference(read_settings_of(folder), shown)
        except ValueError:
            continue  # A damaged run is not this one.
        if changed is None and not is_under_way(folder):
            return folder
    return None


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first setting that matters and is another one, with both of its values."""
    old, new = dict(leaves(before)), dict(leaves(now))
    if new.get("objective.speedup") is not None:
        # Measured when the run began; it would come out a little differently now.
        new["objective.num_heads"] = old.get("objective.num_heads")
    for name in sorted(old | new):
        if not _is_free(name) and old.get(name) != new.get(name):
            return name, old.get(name), new.get(name)
    return None


def _name(override: str) -> str:
    """Return the setting or group that an override is about: of ``+group@place=option``, the group."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0]
