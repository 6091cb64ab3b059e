"""Settings that may be added to a configuration, which Hydra asks a ``+`` for."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from omegaconf import OmegaConf

__all__ = ["open_tables"]

# Groups that take more settings than their files have: those of the trainer, a data source or model, and callbacks.
_GROUPS = ("callbacks", "data", "model", "trainer")
_NAME = re.compile(rf"(?P<group>{'|'.join(_GROUPS)})\.(?P<name>\w+)(\.[\w.]+)?=")
# Settings that are tables by themselves.
_TABLES = re.compile(r"(model\.config|objective\.num_heads|objective\.keep)(\.[\w.]+)?=")


def open_tables(arguments: Sequence[str], *, conf: Path) -> list[str]:
    """Return the arguments of a command with ``++``, add or replace, before settings that may be added.

    The check of all settings tells which of them nothing takes.

    Args:
        arguments: Those of the command.
        conf: The folder of the groups of settings.
    """
    return [f"++{argument}" if _is_added(argument, conf) else argument for argument in arguments]


def _is_added(argument: str, conf: Path) -> bool:
    name = _NAME.match(argument)
    table = _TABLES.match(argument)
    if table is not None:
        return table[1] == "model.config" or table[2] is not None
    return name is not None and name["name"] not in _names_in_files(conf / name["group"])


@cache
def _names_in_files(group: Path) -> set[str]:
    return {str(name) for path in group.glob("*.yaml") for name in OmegaConf.load(path)}
