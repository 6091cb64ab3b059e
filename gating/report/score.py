"""The metric that a run reports, and how people read it."""

import math
from dataclasses import dataclass

__all__ = ["Score"]


@dataclass(frozen=True)
class Score:
    """A metric by its name in the logs, and how to show a value of it.

    Example:
        >>> Score("accuracy").show(0.9824), Score("perplexity", scale=1, unit="").show(12.5)
        ('98.24 %', '12.50')

    Attributes:
        name: Its name, such as ``accuracy``.
        scale: What a value is multiplied by to be shown.
        unit: What stands behind it then.
    """

    name: str
    scale: float = 100
    unit: str = " %"

    def show(self, value: float) -> str:
        """Return a value as people read it; a dash where there is none."""
        return "-" if math.isnan(value) else f"{self.scale * value:.2f}{self.unit}"
