"""The results of a run: the one model that its page, pictures and tables show."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from gating.report.history import History
from gating.report.rows import CompactReport, KeptHeads, KeptNeurons
from gating.report.score import Score
from gating.report.summary import Stage, Summary


class Runtime(NamedTuple):
    """A runtime that a model is exported to.

    Attributes:
        name: Its name.
        command: Command that serves the model or exports it; empty where the runtime does not run it.
        reason: The reason for which it does not.
        exports: Exports for it that have been written; they stand in place of the command, which does not replace them.
    """

    name: str
    command: str
    reason: str = ""
    exports: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """The results of a run, and the ways to use its model.

    Attributes:
        title: Name of the model and the data.
        history: Observations of the run.
        score: Score of the observations.
        final_score: Score of the tables and the headline.
        summary: Measurements of the run.
        kept: The kept heads of each attention block.
        neurons: The kept neurons of each feed-forward block.
        search_steps: Step at which units were removed; 0 in a dense run.
        total_steps: Steps of the whole run.
        dense: Metrics of a dense reference from another run, by the names ``val/NAME`` and ``test/NAME``.
        is_in_sweep: Whether the run is a job of a sweep.
        log: Rows of its log: values by their names, and the number of the step by ``step``.
        config: Settings of the run as YAML, without secrets.
        compact: Folder of the compact model.
        usage: Code that loads and uses it.
        runtimes: Runtimes that run it, and those that do not.
        samples: Texts that it generated, by label.
        date: Date of the run.
    """

    title: str
    history: History
    score: Score
    final_score: Score
    summary: Summary = field(default_factory=Summary)
    kept: Sequence[KeptHeads] = ()
    neurons: Sequence[KeptNeurons] = ()
    search_steps: int = 0
    total_steps: int = 0
    dense: Mapping[str, float] = field(default_factory=dict)
    is_in_sweep: bool = False
    log: Sequence[Mapping[str, float]] = ()
    config: str = ""
    compact: Path = Path()
    usage: str = ""
    runtimes: Sequence[Runtime] = ()
    samples: Sequence[Mapping[str, str]] = ()
    date: str = ""

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

    def validation_at(self, stage: Stage) -> float:
        """Return the score of a stage on validation data; NaN where it was not measured."""
        return self.summary.metrics.get(stage, {}).get(f"val/{self.score.name}", math.nan)

    @property
    def amounts(self) -> tuple[float, float]:
        """The quantity of the budget before and after the removal: a number of units, or the share of their cost."""
        if self.history.quantity == "cost":
            return 1, sum(self.history.spent.values()) or math.nan
        return self.summary.sizes.get(self.history.quantity, (0, 0))

    def gate_values(self) -> dict[str, list[float]]:
        """Return the gate value of every gated head at the end of the search, of kept heads the folded factor."""
        values = {}
        for name, heads, num_heads in self.kept:
            if gates := self.history.gate_values.get(name):
                # A gate of a group stands for several heads.
                values[name] = [gates[head * len(gates) // num_heads] for head in range(num_heads)]
                for head, factor in zip(heads, self.history.folded.get(name, ()), strict=False):
                    values[name][head] = factor
        return values
