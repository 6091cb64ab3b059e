"""Names of settings in error messages: num_heads becomes objective.num_heads in a command."""

import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf import DictConfig, OmegaConf

from gating.compact.files import walk
from gating.errors import explain

__all__ = ["naming_settings"]


@contextmanager
def naming_settings(cfg: DictConfig) -> Iterator[None]:
    """Add the message for a command to errors in a ``with`` block, with dotted names of settings.

    Args:
        cfg: The settings of the command.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        error.in_command = _with_settings(explain(error), cfg)  # type: ignore[union-attr]
        raise


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
