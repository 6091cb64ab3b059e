"""The names of parameters in errors, as a command has them: num_heads is objective.num_heads there."""

import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf import DictConfig, OmegaConf

from gating.compact.files import walk
from gating.errors import explain, unwrapped

__all__ = ["naming_settings"]


@contextmanager
def naming_settings(cfg: DictConfig) -> Iterator[None]:
    """Name the settings of a command in the errors of a ``with`` block, where these name parameters.

    Args:
        cfg: The settings.
    """
    try:
        yield
    except Exception as error:
        cause = unwrapped(error)
        if isinstance(cause, (ValueError, TypeError)):
            cause.in_command = _with_settings(explain(cause), cfg)  # type: ignore[union-attr]
        raise


def _with_settings(sentence: str, cfg: DictConfig) -> str:
    """Put the group before each ``name=value`` that only one group has."""
    places = defaultdict[str, list[str]](list)
    for name, value in walk(OmegaConf.to_container(cfg)):
        for short in {name.partition(".")[2], name.rpartition(".")[2]} - {"", name}:
            places[f"{short}={value}"].append(f"{name}={value}")
    for short, (full, *others) in places.items():
        if not others:
            # Not within a path or another name.
            named = re.compile(rf"(?<![^\s(]){re.escape(short)}(?![^\s,.:;)])")
            sentence = full.join(named.split(sentence))
    return sentence
