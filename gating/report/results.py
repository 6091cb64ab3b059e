"""The results of a run: the one model that its page, pictures and tables show."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from gating.report.rows import CompactReport, KeptHeads, KeptNeurons
from gating.report.score import Score
from gating.report.summary import Stage, Summary


@dataclass(frozen=True)
class Observation:
    """The state of a run at one validation.

    ``expected_open`` and ``open`` are numbers of heads or neurons, or shares of cost (:attr:`History.quantity`); the
    gates that are open have a deterministic value above 0. The target is NaN for objectives without one.
    """

    step: int
    metric: float
    expected_open: float
    open: float
    target: float


@dataclass
class History:
    """Observations of a run over all its phases, and the gate values by block at the end of the search.

    Attributes:
        folded: For each block, the factors multiplied into the output projection's columns of its kept heads, in their
            order, or of its kept groups of neurons; the probability of being open where a kept gate is closed.
        spent: With gates on heads and neurons, the share of the cost of all of them that the kept ones of each kind
            have, after the search.
    """

    observations: list[Observation] = field(default_factory=list)
    gate_values: dict[str, list[float]] = field(default_factory=dict)
    folded: dict[str, list[float]] = field(default_factory=dict)
    quantity: str = "heads"
    spent: dict[str, float] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Return the history as plain values, for a checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the history of a checkpoint."""
        vars(self).update(state)
        self.observations = [Observation(**values) for values in state["observations"]]


class Runtime(NamedTuple):
    """A runtime of exported models, with the command that serves or exports the model, or the reason for none.

    Exports that have been written stand in place of the command, which does not replace them.
    """

    name: str
    command: str
    reason: str = ""
    exports: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """The results of a run, and the ways to use its model.

    Tables and headline have the ``final_score``, observations the ``score``. Units were removed at the step
    ``removed_at``, which is 0 in a dense run. The log has the step of each row by ``step``; the config is YAML without
    secrets.
    """

    title: str
    history: History
    score: Score
    final_score: Score
    summary: Summary = field(default_factory=Summary)
    kept: Sequence[KeptHeads] = ()
    neurons: Sequence[KeptNeurons] = ()
    removed_at: int = 0
    total_steps: int = 0
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
        return not self.summary.search

    @property
    def final(self) -> Mapping[str, float]:
        """Metrics of the final model."""
        return self.summary.metrics.get("compact", {})

    @property
    def reference(self) -> Mapping[str, float]:
        """Metrics of the dense model: the teacher, or this one before a search on embeddings or frozen weights."""
        return self.summary.metrics.get("dense", {})

    @cached_property
    def report(self) -> CompactReport:
        """The measurements as formatted tables."""
        return self.summary.compact_report(self.final_score)

    def validation_at(self, stage: Stage) -> float:
        """Return the score of a stage on validation data; NaN where it was not measured."""
        value = self.summary.score_of(stage, self.score)
        return math.nan if value is None else value

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
