"""The folder that is damaged."""

import random
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """A folder to damage, another one of the same family, and the generator of random choices."""

    rng: random.Random
    folder: Path
    other: Path
