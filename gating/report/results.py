"""The results of a run, which its page, figures and tables show."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from gating.report.history import History
from gating.report.rows import CompactReport, KeptHeads, KeptNeurons
from gating.report.score import Score
from gating.report.summary import Stage, Summary
from gating.units import UNITS

__all__ = ["RunResults"]


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """The results of a run.

    Attributes:
        history: Observations of the run.
        score: Score of the observations.
        final_score: Score of the tables and the headline.
        summary: Measurements of the run.
        kept: The kept heads of each attention block.
        neurons: The kept neurons of each feed-forward block.
        search_steps: Step at which units were removed; 0 in a dense run.
        total_steps: Steps of the whole run.
        dense: Metrics of a dense reference from another run, by the names ``val/NAME`` and ``test/NAME``.
        log: Rows of its log: values by their names, and the number of the step by ``step``.
    """

    history: History
    score: Score
    final_score: Score
    summary: Summary = field(default_factory=Summary)
    kept: Sequence[KeptHeads] = ()
    neurons: Sequence[KeptNeurons] = ()
    search_steps: int = 0
    total_steps: int = 0
    dense: Mapping[str, float] = field(default_factory=dict)
    log: Sequence[Mapping[str, float]] = ()

    @property
    def is_dense(self) -> bool:
        """Whether no units were searched for."""
        return not self.search_steps

    @property
    def final(self) -> Mapping[str, float]:
        """Metrics of the final model."""
        return self.summary.metrics.get(Stage.COMPACT, {})

    @property
    def reference(self) -> Mapping[str, float]:
        """Metrics of a dense model: of another run, or of the teacher of this one; empty without one."""
        return self.dense or self.summary.metrics.get(Stage.DENSE, {})

    @cached_property
    def report(self) -> CompactReport:
        """The measurements as formatted tables."""
        return self.summary.compact_report(self.final_score)

    @property
    def fall(self) -> tuple[float, float]:
        """The scores right before and right after the removal; NaN where they were not measured."""
        stages = (self.summary.metrics.get(stage, {}) for stage in (Stage.SEARCH, Stage.REMOVED))
        before, after = (metrics.get(f"val/{self.score.name}", math.nan) for metrics in stages)
        return before, after

    @property
    def amounts(self) -> tuple[float, float]:
        """The quantity of the budget before and after the removal: a number of units, or the share of their cost."""
        if self.history.quantity == "cost":
            return 1, sum(self.history.spent.values()) or math.nan
        return self.summary.sizes.get(self.history.quantity, (0, 0))

    @property
    def units(self) -> str:
        """Names of the units with gates, such as ``heads``."""
        return " and ".join(self.history.spent or UNITS) if self.history.quantity == "cost" else self.history.quantity
