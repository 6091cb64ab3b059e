"""Options of Hydra's groups in the configuration folders of a command, and the names of settings in messages."""

import importlib.resources
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from gating.compact.files import walk
from gating.errors import explain
from gating.storage.same_settings import leaves

__all__ = ["Option", "names_given", "naming_settings", "read_options"]

_CLASS = re.compile(r"(?<![^\s(])(?P<group>\w+)\._target_=(?P<name>[\w.]+\w)")
_PACKAGE = re.compile(r"^#\s*@package\s+(\S+)", re.MULTILINE)


class Option(NamedTuple):
    """One file of settings.

    Attributes:
        name: Group and option, such as ``model/pretrained``.
        package: Dotted package of its settings; empty at the top level.
        settings: Its settings as plain values, without those of its defaults.
        defaults: Its defaults list.
    """

    name: str
    package: str
    settings: dict[str, Any]
    defaults: list[Any]


def read_options(conf: Path) -> list[Option]:
    """Return the options in the program's folder, that of ``--config-dir`` and those of Hydra's search path."""
    folders = [conf, *_folders_of_command()]
    return [option for folder in dict.fromkeys(folders) for option in _read_folder(folder)]


def _folders_of_command() -> Iterator[Path]:
    if not HydraConfig.initialized():
        return
    for source in HydraConfig.get().runtime.config_sources:
        if source.schema == "file":
            yield Path(source.path)
        elif source.schema == "pkg" and source.provider != "hydra":
            with suppress(ImportError):
                yield Path(str(importlib.resources.files(source.path.replace("/", "."))))


def _read_folder(folder: Path) -> Iterator[Option]:
    for path in sorted(folder.rglob("*.yaml")):
        with suppress(Exception):  # Files that Hydra cannot read either.
            settings: Any = OmegaConf.to_container(OmegaConf.load(path))
            name = path.relative_to(folder).with_suffix("").as_posix()
            group = name.rpartition("/")[0].replace("/", ".")
            header = _PACKAGE.search(path.read_text(encoding="utf-8"))
            package = header[1].replace("_group_", group) if header else group
            package = package.removeprefix("_global_").lstrip(".")
            yield Option(name, package, settings, settings.pop("defaults", None) or [])


def names_given(overrides: Sequence[str], options: Sequence[Option]) -> list[str]:
    """Return the dotted names of the settings and groups that a command line sets.

    Args:
        overrides: Its overrides, such as ``+group@package=option`` and ``name=value``. An option at the top level, such
            as an experiment, sets all of its settings.
        options: All options of the command.
    """
    names: list[str] = []
    for line in overrides:
        place, _, value = line.lstrip("+~").partition("=")
        group = place.partition("@")[0]
        chosen = [option for option in options if option.name == f"{group}/{value}" and not option.package]
        names += [] if chosen else [place.rpartition("@")[2].strip("/").replace("/", ".")]
        for option in chosen:
            names += [name for name, _ in leaves(option.settings)]
            for default in option.defaults:
                also = [default] if isinstance(default, str) else [f"{key}={default[key]}" for key in default]
                also = [f"{group}={line}" if "=" not in line else line.partition(" /")[2] or line for line in also]
                names += names_given([line for line in also if line != f"{group}=_self_"], options)
    return names


@contextmanager
def naming_settings(settings: Mapping[str, Any], *, conf: Path | None = None) -> Iterator[None]:
    """Add the message for a command to errors in a ``with`` block, with dotted names of settings.

    With the configuration folder, its options are named in place of their classes.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        sentence = _with_settings(explain(error), settings)
        error.in_command = sentence if conf is None else _with_options(sentence, conf)  # type: ignore[union-attr]
        raise


def _with_options(sentence: str, conf: Path) -> str:
    """Return a message with ``objective=none`` in place of a class that a single option of the group has."""

    def named(match: re.Match[str]) -> str:
        options = [option for option in read_options(conf) if option.name.startswith(f"{match['group']}/")]
        found = [option.name for option in options if option.settings.get("_target_") == match["name"]]
        return found[0].replace("/", "=") if len(found) == 1 else match[0]

    return _CLASS.sub(named, sentence)


def _with_settings(sentence: str, settings: Mapping[str, Any]) -> str:
    """Return a message with the group in front of each ``name=value`` that is unique to one group."""
    places = defaultdict[str, list[str]](list)
    for name, value in walk(dict(settings)):
        for short in {name.partition(".")[2], name.rpartition(".")[2]} - {"", name}:
            places[f"{short}={value}"].append(f"{name}={value}")
    for short, (full, *others) in places.items():
        if not others:
            # A name does not count inside a path or another name.
            named = re.compile(rf"(?<![^\s(]){re.escape(short)}(?![^\s,.:;)])")
            sentence = full.join(named.split(sentence))
    return sentence
