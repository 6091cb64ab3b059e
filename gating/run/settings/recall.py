"""Settings of a resumed run: those of its folder, overridden by the command line."""

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
from gating.run.settings.read import resolving
from gating.run.settings.trust import OWN_PLACE, check_trusted, is_given
from gating.tracking.redaction import HIDDEN

__all__ = ["recall", "with_output_dir", "with_recalled"]

# Settings of one command, not of a run.
_OF_COMMAND = {"output_dir", "overwrite", "resume", "ckpt_path", "phase", "optimized_metric", "push_to_hub", "sweep"}


def with_output_dir(cfg: DictConfig, folder: str) -> DictConfig:
    """Return the settings of a command with another folder of the run; ``cfg`` stays."""
    settings: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    return OmegaConf.create({**settings, "output_dir": folder})


def with_recalled(cfg: DictConfig, overrides: Sequence[str], *, conf: Path) -> DictConfig:
    """Return the settings of a command with those that :func:`recall` takes from a run's folder; ``cfg`` stays."""
    with resolving():
        taken = recall(cfg, overrides, conf=conf)
        settings: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    return OmegaConf.create({**settings, **taken})


def recall(cfg: DictConfig, overrides: Sequence[str], *, conf: Path) -> dict[str, Any]:
    """Return the settings of the run that a command resumes, except those that its command line sets.

    A command thus needs only ``resume=DIR``. With ``resume=auto``, the command is whole.

    Args:
        cfg: The settings of the command.
        overrides: Overrides of the command line.
        conf: The configuration folder of the program.

    Returns:
        Settings by name, to replace whole groups; empty if the command resumes no run by name.

    Raises:
        InputError: There is no such run, a setting was a secret, or a setting is not trusted.
    """
    resume, ckpt_path = cfg.resume, cfg.ckpt_path
    if not all(value is None or isinstance(value, str) for value in (resume, ckpt_path)):
        return {}  # The validation of all settings refuses them.
    if ckpt_path is None and resume in (None, "auto"):
        return {}
    options = read_options(conf)
    given = names_given(overrides, options)
    folder = named_run(resume, ckpt_path)
    command: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    stored = read_settings_of(folder)
    check_links(folder, checkpoints_of(folder, stored))
    stored = _relocated(stored, folder, given)
    taken = {name: value for name, value in stored.items() if name in command and name not in _OF_COMMAND}
    check_trusted(taken, folder=folder, given=given, command=command, options=options)
    taken["paths"] = {**command["paths"], **taken["paths"]}
    if "allow_changed" in taken["data"]:
        taken["data"]["allow_changed"] = False  # Each command allows it anew.
    for name in (name for name in given if name.partition(".")[0] not in _OF_COMMAND):
        _override(taken, command, name.split("."))
    if HIDDEN in str(taken):
        raise InputError(
            f"The run in {folder} had a secret among its settings, which is not kept there: give the whole command "
            f"again, with output_dir={folder} resume=auto."
        )
    return taken if is_given("output_dir", given) else {**taken, "output_dir": str(folder)}


def _relocated(stored: dict[str, Any], folder: Path, given: Sequence[str]) -> dict[str, Any]:
    """Return the stored settings of a run, adapted to the current path of its folder.

    Raises:
        InputError: Its checkpoints are outside its folder, and may be another run's.
    """
    checkpoints = checkpoints_of(folder, stored)
    if not is_given("paths.checkpoints", given) and not has_own_checkpoints(folder, checkpoints):
        again = shlex.quote(f"paths.checkpoints={stored['paths'].get('checkpoints')}")
        raise InputError(
            f"The run in {folder} has its checkpoints in {checkpoints}, which may be those of another run. If they are "
            f"its own, confirm with: python train.py resume={folder} {again}"
        )
    objective = stored["objective"]
    if objective.get("speedup") is not None:
        # They were measured from the speedup.
        before = {"num_heads": None, "keep": None, "cost": "macs"}
        objective = objective | {name: value for name, value in before.items() if name in objective}
    # Callbacks are stored with the folder of one phase.
    place = f"{stored['paths'].get('checkpoints')}/{stored.get('phase')}"
    callbacks = _replace(stored["callbacks"], place, OWN_PLACE)
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
