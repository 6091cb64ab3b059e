"""A prepared run: settings, objects and data, and the state that its stages change."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from gating.distributed.collectives import broadcast, is_rank_zero
from gating.gates.attachment import freeze, unfreeze
from gating.objectives import KeepsBudget
from gating.objectives.search import Search
from gating.proof.outputs import evaluating
from gating.report.results import History
from gating.report.score import Score
from gating.report.summary import Stage, Summary
from gating.run.build import RunObjects, trains_weights
from gating.run.data import RunData
from gating.run.folder import Phase, RunFolder
from gating.run.settings import Settings
from gating.run.timing import RunTiming
from gating.sharding.plan import gathered_root, is_sharded, reshard
from gating.storage.files import found_checkpoints
from gating.tasks.base import Sample, WritesText
from gating.training.checkpoints import why_unusable

if TYPE_CHECKING:
    from gating.teachers.teacher import Teacher


@dataclass
class RunState:
    """The part of a run that changes; the stages of a run write it.

    ``dense_steps`` are those of the dense model, before the search; they and ``search_steps`` are as planned until the
    phase has ended, and 0 in a dense run. The teacher is None until the run has one, and ``search`` unless it has ended
    and its closed gates are not removed yet. Several sizes share the ``order`` of the gates, which is there once units
    are ranked, down to the ``smallest`` of their budgets.
    """

    model: PreTrainedModel
    dense_steps: int = 0
    search_steps: int = 0
    teacher: "Teacher | None" = None
    history: History = field(default_factory=History)
    summary: Summary = field(default_factory=Summary)
    search: Search | None = None
    order: list[Tensor] = field(default_factory=list)
    smallest: KeepsBudget | None = None
    dense_exports: dict[str, tuple[Any, dict[str, float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A prepared run, with the configuration of the dense model and the loggers of all phases but the teacher's.

    ``measured`` has the settings of the objective that were timed, and for several ``sizes`` those by their speed-ups.
    ``total_steps`` are those of all phases together; ``started`` is in seconds of ``time.monotonic``.
    """

    settings: Settings
    objects: RunObjects
    folder: RunFolder
    data: RunData
    dense_config: PreTrainedConfig
    total_steps: int
    loggers: list[Logger]
    started: float
    timing: RunTiming
    state: RunState
    measured: Mapping[str, Any] = field(default_factory=dict)

    @property
    def removed_at(self) -> int:
        """Optimizer steps before the removal; 0 in a dense run."""
        return self.state.dense_steps + self.state.search_steps

    @property
    def recovery_steps(self) -> int:
        """Optimizer steps after the removal; none where nothing is left to train."""
        has_weights = trains_weights(self.settings, self.objects, Phase.RECOVERY)
        return self.total_steps - self.removed_at if has_weights else 0

    @property
    def last_phase(self) -> Phase:
        """The phase whose weights are those of the result."""
        return Phase.DENSE if self.objects.objective is None else Phase.RECOVERY

    @property
    def is_sharded(self) -> bool:
        """Whether the model is cut over several processes."""
        return is_sharded(self.state.model)

    def last_checkpoint(self, phase: Phase) -> Path | None:
        """Return the last undamaged checkpoint of a phase, the same on all ranks."""
        for path in broadcast(found_checkpoints(self.folder.of_phase(phase)) if is_rank_zero() else []):
            reason = broadcast(why_unusable(path) if is_rank_zero() else None)
            if reason is None:
                return path
            if is_rank_zero():
                print(f"{path} is damaged ({reason}); going back to the one before it.", file=sys.stderr)
        return None

    @contextmanager
    def adapted(self, model: PreTrainedModel, phase: Phase) -> Iterator[None]:
        """Train a model with adapters, if any, which are merged at the end; its weights are frozen if the phase is.

        Random numbers are seeded first: in a resumed run other numbers were drawn before this phase.
        """
        pl.seed_everything(self.settings.seed, verbose=False)
        # The parameters are frozen, not their gathered copies.
        reshard(model)
        names = freeze(model) if self.settings.freezes(phase) else ()
        try:
            with self.objects.adapters.on(model):
                yield
        finally:
            unfreeze(model, names)

    def evaluate(
        self, stage: Stage, title: str, *, splits: Sequence[str] = ("validation",), model: PreTrainedModel | None = None
    ) -> None:
        """Add the metrics of a model, by default the run's, to the summary; of test data at the end of the run only."""
        # The removal changes no output, so that slow metrics can wait for it.
        prepared = self.data.prepared
        metrics = prepared.metrics if stage == "search" else prepared.all_metrics
        with self.state.summary.timed("evaluate"):
            for split in (split for split in splits if self.data.num_evaluated[split]):
                found = self.data.evaluate(
                    model or self.state.model,
                    split,
                    task=self.objects.task,
                    metrics=metrics,
                    baseline=prepared.baseline if stage == "compact" else None,
                    title=f"{title}: {split}",
                )
                self.state.summary.add_metrics(stage, title, split, found.metrics)
                if stage == "compact":
                    self.state.summary.add_counts(split, *found.count(), is_part=self.data.is_part(split))
                    if (baseline := prepared.baseline) is not None:
                        name = f"baseline: {baseline.name}"
                        self.state.summary.add_metrics("baseline", name, split, found.of_baseline)
        if stage == "compact":
            self._warn_if_doubtful(prepared.final_score or prepared.score)

    def _warn_if_doubtful(self, score: Score) -> None:
        """Print a warning if the final score beats no baseline, and keep it with the measurements."""
        doubt = self.state.summary.doubt(score)
        if doubt is not None:
            self.state.summary.warnings.append(doubt)
            if is_rank_zero():
                print(f"warning: {doubt}")

    def write_samples(self) -> list[Sample]:
        """Return texts that the model generates; none if its task generates no texts."""
        task, processor, model = self.objects.task, self.data.processor, self.state.model
        if not (isinstance(task, WritesText) and isinstance(processor, PreTrainedTokenizerBase)):
            return []
        with gathered_root(model), evaluating(model):
            return task.write_samples(model, processor, self.data.prepared.splits)

    def probe_batch(self) -> dict[str, Any]:
        """Return eight long examples of the validation data without labels, on the model's device."""
        device = self.state.model.device
        return {name: tensor.to(device) for name, tensor in self.data.module.timing_batch("max").items()}
