"""Training of one phase of a run, resumed from its last checkpoint if there is one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch.distributed
from pytorch_lightning.callbacks import Callback, Checkpoint, EarlyStopping

from gating.distributed.collectives import is_rank_zero
from gating.objectives.search import Search
from gating.run.build import build, build_callbacks
from gating.run.folder import Phase
from gating.run.run import Run
from gating.run.settings import Settings
from gating.training.callbacks import BestWeights, DivergenceStop, GateMonitor
from gating.training.checkpoints import AtomicCheckpointIO, RunCheckpoint, ShardedStrategy
from gating.training.evaluation import validation_interval
from gating.training.module import FineTuning
from gating.training.optimizers import WarmupSchedule
from gating.training.progress import (
    InterruptOnStop,
    PhaseProgressBar,
    check_completed,
    end_reason,
)


def train_phase(
    run: Run,
    phase: Phase,
    *,
    steps: int,
    first_step: int = 0,
    search: Search | None = None,
) -> int:
    """Train the model of a run for one phase, which begins after ``first_step`` steps of the run.

    Returns:
        The number of optimizer steps of the phase, including those before an interruption.

    Raises:
        Unfinished: Training ended before the last step.
    """
    module = _build_module(run, phase, steps=steps, first_step=first_step, search=search)
    # A search ends with its last gates, which have reached the budget.
    best = BestWeights() if run.settings.recovery_keep == "best" and phase != Phase.SEARCH else None
    trainer = _build_trainer(run, phase, steps=steps, own=[best] if best else [])
    checkpoint = run.last_checkpoint(phase)
    if checkpoint is not None and is_rank_zero():
        print(f"{phase} resumes from {checkpoint}")
    trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    run.data.module.start_after(first_step * run.settings.trainer["accumulate_grad_batches"])
    if best is not None and checkpoint is None and phase == Phase.RECOVERY:
        # Few steps of recovery, on examples that the search has seen, can also make a model worse.
        for stage in ("compensated", "removed"):
            before = run.state.summary.score_of(stage, module.score)
            if before is not None:
                best.consider(module, before, step=first_step)
                break
    # A plain string, because checkpoints hold no classes.
    with run.state.summary.timed(phase.value):
        # from_pretrained leaves models in evaluation mode, which Lightning keeps.
        trainer.fit(module.train(), datamodule=run.data.module, ckpt_path=checkpoint)
    check_completed(trainer, phase=phase)
    # Lightning moves models back to the CPU after training.
    module.model.to(trainer.strategy.root_device)  # type: ignore[arg-type]
    if best is not None:
        best.restore(module.model)
    if phase != Phase.SEARCH:
        _report_end(run, phase, trainer, module, best)
    return trainer.global_step


def _report_end(run: Run, phase: Phase, trainer: pl.Trainer, module: FineTuning, best: BestWeights | None) -> None:
    """Print why a phase has ended early and which weights it keeps, and add both to the summary."""
    last, reason = module.step_in_run, end_reason(trainer)
    kept = last if best is None or best.step is None else best.step
    if phase == run.last_phase:
        run.state.summary.training = {"kept_step": kept, **({"stopped_early": reason} if reason else {})}
    if not is_rank_zero():
        return
    if reason:
        print(f"{phase} ended after {trainer.global_step} of {trainer.max_steps} steps: {reason}.")
    if best is not None and best.step is not None:
        print(
            f"{phase} keeps the weights after step {kept} of {last}: validation {module.score.name} {best.score:.4f}."
        )


def _build_module(run: Run, phase: Phase, *, steps: int, first_step: int, search: Search | None) -> FineTuning:
    # The dense model has a schedule of its own, also where others come after it.
    begun, ended = (0, steps) if phase == Phase.DENSE else (run.state.dense_steps, run.total_steps)
    return FineTuning(
        run.state.model,
        task=run.objects.task,
        metrics=run.data.prepared.metrics,
        score=run.data.prepared.score,
        optimizer=build("optimizer", run.settings.optimizer),
        scheduler=_scheduler_of(run.settings),
        scheduled=(begun, ended),
        first_step=first_step,
        search=search,
        teacher=run.state.teacher,
        seed=run.settings.seed,
        compiler="inductor" if run.settings.compile else None,
    )


def _scheduler_of(settings: Settings) -> Any:
    """Return the schedule of a phase: without a planned recovery the training of weights goes on after the search."""
    scheduler = build("scheduler", settings.scheduler)
    if settings.plan.recovery or settings.freezes(Phase.SEARCH) or not isinstance(scheduler, WarmupSchedule):
        return scheduler
    return replace(scheduler, restart=False)


def _build_trainer(run: Run, phase: Phase, *, steps: int, own: Sequence[Callback]) -> pl.Trainer:
    chosen = build_callbacks(run.settings)
    has_checkpoints = any(isinstance(callback, Checkpoint) for callback in chosen)
    make_trainer = build("trainer", run.settings.trainer, partial=True)
    trainer: pl.Trainer = make_trainer(
        max_epochs=-1,
        max_steps=steps,
        logger=run.loggers,
        callbacks=_callbacks_of_phase(run, phase, [*own, *chosen]),
        max_time=None,
        enable_checkpointing=has_checkpoints,
        default_root_dir=run.folder.of_phase(phase),
        val_check_interval=validation_interval(run.settings.trainer, num_batches=run.data.module.num_batches()),
        use_distributed_sampler=False,
        **({"strategy": ShardedStrategy(torch.distributed.get_world_size())} if run.is_sharded else {}),
    )
    return trainer


def _callbacks_of_phase(run: Run, phase: Phase, chosen: Sequence[Callback]) -> list[Callback]:
    """Return the callbacks of a phase in the order in which Lightning calls them."""
    trainer = run.settings.trainer
    if phase == Phase.SEARCH:
        # It ends by its own criterion; before that, its gates have not reached the budget.
        chosen = [callback for callback in chosen if not isinstance(callback, EarlyStopping)]
    # First, so that no other callback has begun the next batch when a checkpoint is written.
    own = (RunCheckpoint, BestWeights)
    checkpoints = [callback for kind in own for callback in chosen if isinstance(callback, kind)]
    others = [callback for callback in chosen if not isinstance(callback, own)]
    bar = [PhaseProgressBar(phase)] if trainer.get("enable_progress_bar", True) else []
    monitor = GateMonitor(run.state.history, run.state.summary)
    always = [*checkpoints, *bar, monitor, DivergenceStop(run.folder.of_phase(phase))]
    # Last, because it acts on stops that other callbacks request.
    end = InterruptOnStop(phase, max_time=trainer.get("max_time"), started=run.started)
    return [*always, *others, end]
