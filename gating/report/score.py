"""The metric that a run reports, with its unit."""

import math
from dataclasses import dataclass

__all__ = ["Score"]


@dataclass(frozen=True)
class Score:
    """The name of a metric in the logs, and the format of its values.

    Example:
        >>> Score("accuracy").show(0.9824), Score("perplexity", scale=1, unit="").show(12.5)
        ('98.24 %', '12.50')

    Attributes:
        name: Name of the metric, such as ``accuracy``.
        scale: Factor between a logged and a shown value.
        unit: Text after a shown value.
        higher_is_better: Whether larger values are better; false for perplexity and errors.
    """

    name: str
    scale: float = 100
    unit: str = " %"
    higher_is_better: bool = True

    def show(self, value: float) -> str:
        """Return a value as text, with two decimals and its unit; a dash for NaN."""
        return "-" if math.isnan(value) else f"{self.scale * value:.2f}{self.unit}"
