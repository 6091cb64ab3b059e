"""The choice among runs: the front of accuracy and speed, and the fastest run that loses little."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev

from gating.report.score import Score

__all__ = ["Candidate", "Result", "Tradeoff", "decide"]


@dataclass(frozen=True)
class Result:
    """The numbers of one finished run.

    Attributes:
        folder: Its folder.
        budget: Its budget as text, such as ``18 heads``; ``dense`` for a run without an objective.
        is_dense: Whether it is a dense run.
        group: Identifies the runs that differ from this one in nothing but their seed.
        seed: Its seed; None if its settings have no whole number.
        settings: Other settings in which it differs from the runs that it is compared with, each as text.
        validation: Score on validation data; NaN without it, infinity for one that is no finite number.
        test: Score on test data, likewise.
        heads: Number of attention heads.
        neurons: Number of feed-forward neurons; NaN where they are not counted.
        work: Multiply-accumulates of an example over those of the dense model, or parameters where they are not
            counted.
        speedup: Measured latency of the dense model over its own; NaN without a measurement.
        speedup_short: The same of one short text.
        baseline: Name of a prediction without a model, such as ``majority class``; empty without one.
        baseline_validation: Score of the baseline on the validation data; NaN without one.
        baseline_test: Its score on the test data.
        num_targets: Number of validation labels.
        warnings: Warnings about the run.
    """

    folder: str
    budget: str
    is_dense: bool
    group: str
    seed: int | None
    settings: tuple[str, ...] = ()
    validation: float = math.nan
    test: float = math.nan
    heads: float = math.nan
    neurons: float = math.nan
    work: float = math.nan
    speedup: float = math.nan
    speedup_short: float = math.nan
    baseline: str = ""
    baseline_validation: float = math.nan
    baseline_test: float = math.nan
    num_targets: int = 1
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """The mean of runs that differ in nothing but their seed; several runs of one seed count as one.

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
        known = [run for run in self.runs if math.isfinite(run.validation)] or list(self.runs)
        return min(known, key=lambda run: -run.validation if score.higher_is_better else run.validation)

    @property
    def num_seeds(self) -> int:
        """Number of different seeds."""
        return len({run.seed for run in self.runs})

    def mean(self, name: str) -> float:
        """Return the mean of an attribute over the seeds; infinity or NaN if it is so in one run."""
        return _mean(self._of_seeds(name))

    def spread(self, name: str) -> float:
        """Return the standard deviation of an attribute over the seeds; NaN for a single one."""
        values = self._of_seeds(name)
        return float(stdev(values)) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan

    def _of_seeds(self, name: str) -> list[float]:
        seeds: dict[int | None, list[float]] = {}
        for run in self.runs:
            seeds.setdefault(run.seed, []).append(getattr(run, name))
        return [_mean(values) for values in seeds.values()]

    def is_scored(self, score: Score) -> bool:
        """Return whether the validation score is a finite number, also in the shown unit."""
        return math.isfinite(score.scale * self.mean("validation"))

    def chance(self, score: Score) -> float:
        """Return the difference to the baseline that can be chance: two standard errors, of labels and of seeds."""
        values = self.mean("validation"), self.mean("baseline_validation")
        of_labels = score.chance(*values, num_targets=min(run.num_targets for run in self.runs))
        of_seeds = 2 * self.spread("validation") / math.sqrt(self.num_seeds)
        return of_labels if math.isnan(of_seeds) else math.hypot(of_labels, of_seeds)

    def beats_baseline(self, score: Score) -> bool:
        """Return whether the validation score is better than the baseline by more than chance, or there is none."""
        if not self.is_scored(score):
            return False
        value, baseline = self.mean("validation"), self.mean("baseline_validation")
        return not math.isfinite(baseline) or score.gain(value, baseline) > self.chance(score)


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
        search: Sentence on the best trial of an optimizing sweeper; None for other runs.
    """

    candidates: tuple[Candidate, ...]
    score: Score
    max_drop: float
    axis: str = "speedup"
    front: tuple[Candidate, ...] = ()
    dense: Candidate | None = None
    chosen: Candidate | None = None
    closest: Candidate | None = None
    notes: tuple[str, ...] = ()
    problem: str | None = None
    search: str | None = None

    def speed(self, candidate: Candidate) -> float:
        """Return the speedup, or the dense model's work over that of a candidate; 1 for a dense one, NaN if unknown."""
        if candidate.is_dense:
            return 1.0  # Its own measurement of itself differs by noise.
        value = candidate.mean(self.axis)
        if not (math.isfinite(value) and value > 0):
            return math.nan
        return value if self.axis == "speedup" else 1 / max(value, 1e-9)

    def loss(self, candidate: Candidate) -> float:
        """Return the validation score with the sign by which lower is better."""
        value = candidate.mean("validation")
        return -value if self.score.higher_is_better else value

    def drop(self, candidate: Candidate) -> float:
        """Return the loss of validation score against the dense candidate, in the shown unit; NaN without one."""
        return math.nan if self.dense is None else self.score.scale * (self.loss(candidate) - self.loss(self.dense))

    @property
    def baseline(self) -> Result | None:
        """A run with a baseline, which is that of all; None without one."""
        runs = (run for candidate in self.candidates for run in candidate.runs)
        return next((run for run in runs if math.isfinite(run.baseline_validation)), None)


def _mean(values: Sequence[float]) -> float:
    if all(map(math.isfinite, values)):
        return float(mean(values))
    return math.inf if any(map(math.isinf, values)) else math.nan


def decide(
    results: Sequence[Result],
    score: Score,
    *,
    max_drop: float,
    axis: str = "speedup",
    notes: Sequence[str] = (),
    problem: str | None = None,
    search: str | None = None,
) -> Tradeoff:
    """Choose among runs by their validation scores; test scores are not looked at.

    Runs whose score is not finite, or does not beat the baseline by more than chance, are never chosen. Without a
    speedup of each run, they are compared by their work. The other arguments are attributes of :class:`Tradeoff`.
    """
    candidates = _combine(_with_baseline(results))
    if not all(candidate.is_dense or 0 < candidate.mean("speedup") < math.inf for candidate in candidates):
        axis = "work"
    tradeoff = Tradeoff(tuple(candidates), score, max_drop, axis, notes=tuple(notes), problem=problem, search=search)
    tradeoff = replace(tradeoff, candidates=tuple(sorted(candidates, key=lambda candidate: _rank(candidate, tradeoff))))
    if problem is not None:
        return tradeoff
    speed, loss = tradeoff.speed, tradeoff.loss
    scored = [candidate for candidate in tradeoff.candidates if candidate.is_scored(score)]
    placed = [candidate for candidate in scored if not math.isnan(speed(candidate))]
    front = tuple(c for c in placed if not any(_exceeds(other, c, tradeoff) for other in placed))
    dense = min((candidate for candidate in scored if candidate.is_dense), key=loss, default=None)
    tradeoff = replace(tradeoff, front=front, dense=dense)
    others = [candidate for candidate in placed if not candidate.is_dense and candidate.beats_baseline(score)]
    if dense is None or not others:
        return tradeoff
    # Tolerance of binary fractions: a drop of 0.91 - 0.90 is 1.0000000000000009 points.
    within = [c for c in others if tradeoff.drop(c) <= max_drop + 1e-9 and speed(c) > 1]
    if within:
        return replace(tradeoff, chosen=max(within, key=lambda c: (speed(c), -loss(c))))
    return replace(tradeoff, closest=min(others, key=lambda c: (loss(c), -speed(c))))


def _combine(results: Sequence[Result]) -> list[Candidate]:
    """Return the runs as candidates: those that differ in nothing but their seed are one."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.group, []).append(result)
    # Runs without a seed come last.
    return [
        Candidate(tuple(sorted(runs, key=lambda run: (run.seed is None, run.seed or 0)))) for runs in groups.values()
    ]


def _with_baseline(results: Sequence[Result]) -> list[Result]:
    """Return results of which those without a baseline have that of another one, since all are of the same data."""
    known = next((result for result in results if math.isfinite(result.baseline_validation)), None)
    if known is None:
        return list(results)
    names = ("baseline", "baseline_validation", "baseline_test", "num_targets")
    given = {name: getattr(known, name) for name in names}
    return [replace(result, **given) if not math.isfinite(result.baseline_validation) else result for result in results]


def _rank(candidate: Candidate, tradeoff: Tradeoff) -> tuple[bool, bool, bool, float]:
    """Return the key by which the rows of a table are sorted: those without a score or a speed are the last."""
    speed = tradeoff.speed(candidate)
    is_slow = math.isnan(speed)
    return not candidate.is_scored(tradeoff.score), not candidate.is_dense, is_slow, 0.0 if is_slow else speed


def _exceeds(other: Candidate, candidate: Candidate, tradeoff: Tradeoff) -> bool:
    """Return whether another candidate is at least as good in both, and better in one."""
    gains = (
        tradeoff.loss(candidate) - tradeoff.loss(other),
        tradeoff.speed(other) - tradeoff.speed(candidate),
    )
    return min(gains) >= 0 and max(gains) > 0
