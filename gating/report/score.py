"""The metric that a run reports, with its unit, and how much of a difference can be chance."""

import math
from dataclasses import dataclass

# Text in place of NaN and infinity.
NOT_FINITE = "not finite"
# Numbers from here on are shown with an exponent.
_LARGE = 1e9
# Number of standard errors of which a smaller difference can be chance.
_STANDARD_ERRORS = 2


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
        """Return a value as text, with two decimals and its unit; a dash for NaN, which stands for none."""
        return "-" if math.isnan(value) else self.show_measured(value)

    def show_measured(self, value: float) -> str:
        """Return a value that was measured as text: NaN and infinity are named."""
        shown = self.scale * value
        if not math.isfinite(shown):
            return NOT_FINITE
        return f"{shown:.2f}{self.unit}" if abs(shown) < _LARGE else f"{shown:.4g}{self.unit}"

    @property
    def points(self) -> str:
        """The word after a difference of values: points of shares of 100."""
        return " points" if self.scale == 100 else ""

    def change(self, value: float, other: float) -> float:
        """Return by how much a value is above another one, of the values as they are shown."""
        return round(self.scale * value, 2) - round(self.scale * other, 2)

    def gain(self, value: float, other: float) -> float:
        """Return by how much a value is better than another one; negative if it is worse."""
        return value - other if self.higher_is_better else other - value

    def doubt(self, value: float, baseline: float, *, num_targets: int) -> str | None:
        """Return why a value is no sign of learning from ``num_targets`` labels, as the end of a sentence, or None.

        The baseline is that of a prediction without a model; NaN without one.
        """
        if not math.isfinite(self.scale * value):
            return f"{NOT_FINITE}, as correlations, AUROC and F1 may be with equal labels or equal predictions"
        if math.isnan(baseline):
            return None
        chance = self.chance(value, baseline, num_targets=num_targets)
        if self.gain(value, baseline) > chance:
            return None
        return (
            f"{self.show(value)}, no better than the baseline's {self.show(baseline)} by more than chance "
            f"({self.scale * chance:.2f}): the model may have learned nothing. Train longer, with another learning "
            "rate, or on more data"
        )

    def chance(self, value: float, baseline: float, *, num_targets: int) -> float:
        """Return the difference to a baseline up to which a value may be no better: two standard errors.

        The standard error is that of a share where the metric is one, of a correlation where larger is better, and
        otherwise that of a mean of errors that are as large as they scatter.
        """
        if self.unit.strip() == "%":
            variances = [abs(share) * (1 - abs(share)) for share in (value, baseline)]
            deviation = math.sqrt(max(0.0, *variances))
        else:
            deviation = 1.0 if self.higher_is_better else max(abs(value), abs(baseline))
        return _STANDARD_ERRORS * deviation / math.sqrt(max(num_targets, 1))
