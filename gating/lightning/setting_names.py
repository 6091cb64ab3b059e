"""The names of parameters in errors, as a command has them: num_heads is objective.num_heads there."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from omegaconf import DictConfig, OmegaConf

from gating.errors import explain
from gating.heads.files import walk

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
        # Hydra wraps what it has called.
        cause = error.__cause__ if type(error).__module__.startswith("hydra.") and error.__cause__ else error
        if isinstance(cause, (ValueError, TypeError)):
            cause.in_command = _with_settings(explain(cause), cfg)  # type: ignore[union-attr]
        raise


def _with_settings(sentence: str, cfg: DictConfig) -> str:
    """Put the group before each ``name=value`` whose name only one group has."""
    groups = defaultdict[str, set[str]](set)
    for name, _ in walk(OmegaConf.to_container(cfg)):
        group, _, last = name.rpartition(".")
        groups[last].add(group)
    own: Mapping[str, str] = {name: places.pop() for name, places in groups.items() if len(places) == 1}
    named = re.compile(r"(?<![\w.=])([a-z]\w*)(?=(\.\w+)?=)")
    return named.sub(lambda found: f"{own[found[1]]}.{found[1]}" if own.get(found[1]) else found[1], sentence)
