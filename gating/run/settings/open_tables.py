"""Settings that a command may add without Hydra's ``+``."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from gating.storage.same_settings import leaves

__all__ = ["names_in", "open_tables"]

# Groups that accept more settings than their files have.
_GROUPS = ("callbacks", "data", "model", "optimizer", "scheduler", "trainer")
# Of these, with settings that depend on a class that the command may name.
_OF_CLASSES = ("optimizer", "scheduler")
_NAME = re.compile(rf"(?P<group>{'|'.join(_GROUPS)})\.(?P<name>\w+)(\.[\w.]+)?=")
# Settings with free keys, and those of loggers, of which each option has its own.
_TABLES = re.compile(
    r"(model\.config|scheduler\.arguments|logger\.\w+|objective\.num_heads|objective\.num_neurons|objective\.keep|objective\.cost"
    r"|task\.metrics)(\.[\w.]+)?="
)


def open_tables(arguments: Sequence[str], *, conf: Path) -> list[str]:
    """Return the arguments of a command with ``++`` (add or replace) in front of settings that may be added.

    The validation of all settings refuses unknown names later.
    """
    chosen = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    return [f"++{argument}" if _is_added(argument, chosen, conf) else argument for argument in arguments]


def _is_added(argument: str, chosen: Mapping[str, str], conf: Path) -> bool:
    name = _NAME.match(argument)
    table = _TABLES.match(argument)
    if table is not None:
        return table[1].startswith(("model.", "logger.")) or table[2] is not None
    if name is None:
        return False
    group = conf / name["group"]
    options = [path.stem for path in group.glob("*.yaml")]
    if name["group"] in _OF_CLASSES:
        return any(name["name"] not in names_in(group, (option,)) for option in options)
    option = chosen.get(name["group"])
    return name["name"] not in names_in(group, (option,) if option in options else tuple(options))


@cache
def names_in(group: Path, options: tuple[str, ...]) -> set[str]:
    """Return the names of the settings in some files of a group, and in the files of their defaults.

    Settings in tables have dotted names beside those of their tables.
    """
    names = set[str]()
    for option in options:
        settings: Any = OmegaConf.load(group / f"{option}.yaml")
        others = tuple(name for name in settings.get("defaults", ()) if name != "_self_" and isinstance(name, str))
        plain: Any = OmegaConf.to_container(settings)
        names |= {*plain, *(name for name, _ in leaves(plain))} | names_in(group, others)
    return names
