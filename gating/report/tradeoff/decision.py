"""The choice among runs: the front of accuracy and speed, and the fastest run that loses little."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev

from gating.report.score import Score

__all__ = ["Candidate", "Result", "Tradeoff", "combine", "decide"]


@dataclass(frozen=True)
class Result:
    """The numbers of one finished run.

    Attributes:
        folder: Its folder.
        budget: Its budget as text, such as ``18 heads``; ``dense`` for a run without an objective.
        is_dense: Whether it is a dense run.
        group: Identifies the runs that differ from this one in nothing but their seed.
        seed: Its seed.
        settings: Other settings in which it differs from the runs that it is compared with, each as text.
        validation: Score on validation data; NaN without it.
        test: Score on test data; NaN without it.
        heads: Number of attention heads.
        neurons: Number of feed-forward neurons; NaN where they are not counted.
        work: Multiply-accumulates of an example over those of the dense model, or parameters where they are not
            counted.
        speedup: Measured latency of the dense model over its own; NaN without a measurement.
        speedup_short: The same of one short text.
    """

    folder: str
    budget: str
    is_dense: bool
    group: str
    seed: int
    settings: tuple[str, ...] = ()
    validation: float = math.nan
    test: float = math.nan
    heads: float = math.nan
    neurons: float = math.nan
    work: float = math.nan
    speedup: float = math.nan
    speedup_short: float = math.nan


@dataclass(frozen=True)
class Candidate:
    """The mean of runs that differ in nothing but their seed.

    Attributes:
        runs: The runs, by seed.
    """

    runs: tuple[Result, ...]

    @property
    def name(self) -> str:
        """The budget, and the other settings in which the runs differ from others."""
        return " ".join((self.runs[0].budget, *self.runs[0].settings))

    @property
    def is_dense(self) -> bool:
        """Whether the runs are dense."""
        return self.runs[0].is_dense

    def best(self, score: Score) -> Result:
        """Return the run with the best validation score; the first one without such scores."""
        known = [run for run in self.runs if not math.isnan(run.validation)] or list(self.runs)
        return min(known, key=lambda run: -run.validation if score.higher_is_better else run.validation)

    def mean(self, name: str) -> float:
        """Return the mean of an attribute of the runs."""
        return float(mean(getattr(run, name) for run in self.runs))

    def spread(self, name: str) -> float:
        """Return the standard deviation of an attribute of the runs; NaN for a single one."""
        return float(stdev(getattr(run, name) for run in self.runs)) if len(self.runs) > 1 else math.nan


@dataclass(frozen=True)
class Tradeoff:
    """Runs to choose from, and the choice.

    Attributes:
        candidates: The runs, dense ones first, then by speed.
        score: The metric of the runs.
        max_drop: Largest loss of validation score that is accepted, in the shown unit of the score.
        axis: ``speedup`` if all runs have a comparable measurement, else ``work``.
        front: Candidates that no other one exceeds in both validation score and speed.
        dense: The best dense candidate; None without one.
        chosen: The fastest candidate within ``max_drop`` of the dense one; None without one.
        closest: Without a chosen one, the candidate that loses least; None without any.
        notes: Sentences on the comparison.
        problem: Reason for which the runs cannot be compared, so that nothing is chosen; None if they can.
    """

    candidates: tuple[Candidate, ...]
    score: Score
    max_drop: float
    axis: str = "speedup"
    front: tuple[Candidate, ...] = ()
    dense: Candidate | None = None
    chosen: Candidate | None = None
    closest: Candidate | None = None
    notes: tuple[str, ...] = field(default=())
    problem: str | None = None

    def speed(self, candidate: Candidate) -> float:
        """Return the speedup of a candidate, or the dense model's work over its own; 1 for a dense one."""
        return _speed(candidate, self.axis)

    def drop(self, candidate: Candidate) -> float:
        """Return the loss of validation score against the dense candidate, in the shown unit; NaN without one."""
        return math.nan if self.dense is None else _drop(candidate, self.dense, self.score)


def combine(results: Sequence[Result]) -> list[Candidate]:
    """Return the runs as candidates: those that differ in nothing but their seed are one."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.group, []).append(result)
    return [Candidate(tuple(sorted(runs, key=lambda run: run.seed))) for runs in groups.values()]


def decide(
    results: Sequence[Result],
    score: Score,
    *,
    max_drop: float,
    axis: str = "speedup",
    notes: Sequence[str] = (),
    problem: str | None = None,
) -> Tradeoff:
    """Choose among runs by their validation scores; test scores are not looked at.

    Args:
        results: The runs.
        score: Their metric.
        max_drop: Largest loss of validation score that is accepted, in the shown unit of the score.
        axis: ``speedup``, or ``work`` where measurements are not comparable.
        notes: Sentences on the comparison.
        problem: Reason for which the runs cannot be compared.
    """
    candidates = combine(results)
    if any(math.isnan(candidate.mean("speedup")) for candidate in candidates):
        axis = "work"
    candidates.sort(key=lambda candidate: (not candidate.is_dense, _speed(candidate, axis)))
    if problem is not None:
        return Tradeoff(tuple(candidates), score, max_drop, axis, notes=tuple(notes), problem=problem)
    scored = [candidate for candidate in candidates if not math.isnan(candidate.mean("validation"))]
    dense = min((c for c in scored if c.is_dense), key=lambda c: _loss(c, score), default=None)
    others = [candidate for candidate in scored if not candidate.is_dense]
    chosen = closest = None
    if dense is not None and others:
        # Tolerance of binary fractions: a drop of 0.91 - 0.90 is 1.0000000000000009 points.
        within = [c for c in others if _drop(c, dense, score) <= max_drop + 1e-9 and _speed(c, axis) > 1]
        chosen = max(within, key=lambda c: (_speed(c, axis), -_loss(c, score)), default=None)
        closest = None if chosen else min(others, key=lambda c: (_loss(c, score), -_speed(c, axis)))
    return Tradeoff(
        candidates=tuple(candidates),
        score=score,
        max_drop=max_drop,
        axis=axis,
        front=tuple(c for c in scored if not any(_exceeds(other, c, axis, score) for other in scored)),
        dense=dense,
        chosen=chosen,
        closest=closest,
        notes=tuple(notes),
    )


def _loss(candidate: Candidate, score: Score) -> float:
    """Return the validation score with the sign by which lower is better."""
    value = candidate.mean("validation")
    return -value if score.higher_is_better else value


def _drop(candidate: Candidate, dense: Candidate, score: Score) -> float:
    return score.scale * (_loss(candidate, score) - _loss(dense, score))


def _speed(candidate: Candidate, axis: str) -> float:
    if candidate.is_dense:
        return 1.0  # Its own measurement of itself differs by noise.
    return candidate.mean("speedup") if axis == "speedup" else 1 / max(candidate.mean("work"), 1e-9)


def _exceeds(other: Candidate, candidate: Candidate, axis: str, score: Score) -> bool:
    """Return whether another candidate is at least as good in both, and better in one."""
    gains = (
        _loss(candidate, score) - _loss(other, score),
        _speed(other, axis) - _speed(candidate, axis),
    )
    return min(gains) >= 0 and max(gains) > 0
