"""The settings of a run that goes on: those of its folder, and over them what the command line gives."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gating.errors import InputError
from gating.run.folder.earlier_run import check_links
from gating.run.folder.resume import named_run
from gating.run.folder.state import has_own_checkpoints
from gating.run.folder.stored_settings import checkpoints_of, read_settings_of
from gating.run.settings.options import names_given, read_options
from gating.run.settings.trust import OWN_PLACE, check_trusted, is_given
from gating.tracking.redaction import HIDDEN

__all__ = ["recall"]

# Of one command and not of a run.
_OF_COMMAND = {"output_dir", "overwrite", "resume", "ckpt_path", "phase", "optimized_metric"}


def recall(cfg: DictConfig, overrides: Sequence[str], *, conf: Path) -> dict[str, Any]:
    """Return the settings of the run that a command names, where its command line says nothing else.

    So ``resume=DIR`` is all that one has to remember.

    Args:
        cfg: The settings of the command.
        overrides: What the command line sets, as Hydra has it.
        conf: The folder of the configuration.

    Returns:
        Settings by name, to replace whole groups; none if the command names no run.

    Raises:
        ValueError: There is no such run, a secret was among its settings, or one is not to be trusted.
    """
    resume, ckpt_path = cfg.resume, cfg.ckpt_path
    if not all(value is None or isinstance(value, str) for value in (resume, ckpt_path)):
        return {}  # Which the check of all settings tells.
    if resume in (None, "auto") and ckpt_path is None:
        return {}
    folder, options = named_run(resume, ckpt_path), read_options(conf)
    given = names_given(overrides, options)
    command: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    stored = read_settings_of(folder)
    check_links(folder, checkpoints_of(folder, stored))
    stored = _of_this_place(stored, folder, given)
    taken = {name: value for name, value in stored.items() if name in command and name not in _OF_COMMAND}
    check_trusted(taken, folder=folder, given=given, command=command, options=options)
    taken["paths"] = {**command["paths"], **taken["paths"]}
    for name in (name for name in given if name.partition(".")[0] not in _OF_COMMAND):
        _lay_over(taken, command, name.split("."))
    if HIDDEN in str(taken):
        raise InputError(
            f"The run in {folder} had a secret among its settings, which is not kept there: give the whole command "
            f"again, with output_dir={folder} resume=auto."
        )
    return taken if is_given("output_dir", given) else {**taken, "output_dir": str(folder)}


def _of_this_place(stored: dict[str, Any], folder: Path, given: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a run as a command would give them where its folder is now.

    Raises:
        ValueError: Its checkpoints are elsewhere, and it is not known that they are its own.
    """
    checkpoints = checkpoints_of(folder, stored)
    if not is_given("paths.checkpoints", given) and not has_own_checkpoints(folder, checkpoints):
        again = shlex.quote(f"paths.checkpoints={stored['paths'].get('checkpoints')}")
        raise InputError(
            f"The run in {folder} has its checkpoints in {checkpoints}, which may be those of another run. If they are "
            f"its own, say so: python train.py resume={folder} {again}"
        )
    objective = stored["objective"]
    if objective.get("speedup") is not None:
        objective = {**objective, "num_heads": None}  # It stands for it.
    # They have been told the place of one phase.
    place = f"{stored['paths'].get('checkpoints')}/{stored.get('phase')}"
    callbacks = _replace(stored["callbacks"], place, OWN_PLACE)
    paths = {"checkpoints": str(checkpoints)}
    return {**stored, "objective": objective, "callbacks": callbacks, "paths": paths}


def _replace(settings: Any, old: str, new: str) -> Any:
    """Return settings with another text in place of one that is the whole of a value."""
    if isinstance(settings, Mapping):
        return {name: _replace(value, old, new) for name, value in settings.items()}
    return new if settings == old else settings


def _lay_over(settings: dict[str, Any], other: Mapping[str, Any], path: list[str]) -> None:
    """Make a setting, or a group, that of other settings, in place; one that they do not have goes."""
    name, *rest = path
    if rest and isinstance(settings.get(name), dict) and isinstance(other.get(name), Mapping):
        _lay_over(settings[name], other[name], rest)
    elif name in other:
        settings[name] = other[name]
    else:
        settings.pop(name, None)
