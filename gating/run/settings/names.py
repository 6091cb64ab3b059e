"""Names of settings in error messages: num_heads becomes objective.num_heads in a command."""

import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from gating.compact.files import walk
from gating.errors import explain
from gating.run.settings.options import read_options

__all__ = ["naming_settings"]

_CLASS = re.compile(r"(?<![^\s(])(?P<group>\w+)\._target_=(?P<name>[\w.]+\w)")


@contextmanager
def naming_settings(cfg: DictConfig, *, conf: Path | None = None) -> Iterator[None]:
    """Add the message for a command to errors in a ``with`` block, with dotted names of settings.

    Args:
        cfg: The settings of the command.
        conf: Its configuration folder, whose options are named in place of their classes; None to name the classes.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        sentence = _with_settings(explain(error), cfg)
        error.in_command = sentence if conf is None else _with_options(sentence, conf)  # type: ignore[union-attr]
        raise


def _with_options(sentence: str, conf: Path) -> str:
    """Return a message with ``objective=none`` in place of a class that a single option of the group has."""

    def named(match: re.Match[str]) -> str:
        options = [option for option in read_options(conf) if option.name.startswith(f"{match['group']}/")]
        found = [option.name for option in options if option.settings.get("_target_") == match["name"]]
        return found[0].replace("/", "=") if len(found) == 1 else match[0]

    return _CLASS.sub(named, sentence)


def _with_settings(sentence: str, cfg: DictConfig) -> str:
    """Return a message with the group in front of each ``name=value`` that is unique to one group."""
    places = defaultdict[str, list[str]](list)
    for name, value in walk(OmegaConf.to_container(cfg)):
        for short in {name.partition(".")[2], name.rpartition(".")[2]} - {"", name}:
            places[f"{short}={value}"].append(f"{name}={value}")
    for short, (full, *others) in places.items():
        if not others:
            # Not inside a path or another name.
            named = re.compile(rf"(?<![^\s(]){re.escape(short)}(?![^\s,.:;)])")
            sentence = full.join(named.split(sentence))
    return sentence
