"""Fine-tune a transformer with a gate on every attention head, remove the closed ones, recover, export.

    python train.py --help

A run is a story, told by `run` below with one function for each stage.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import hydra
import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Checkpoint
from transformers import PreTrainedModel

from gating import HeadGates, Objective, finalize
from gating.distributed.collectives import broadcast, check_same, is_rank_zero
from gating.errors import explain
from gating.models.sources import Pretrained
from gating.pruning.measure import count_heads
from gating.run.ending import ending_well
from gating.run.folder.resume import find_run
from gating.run.folder.state import is_finished
from gating.run.optimized import optimized_value
from gating.run.outcome import export, report
from gating.run.phase import callbacks_of_phase
from gating.run.prepare import prepare
from gating.run.removed import keep_removed, restore_removed
from gating.run.run import Run
from gating.run.settings.names import naming_settings
from gating.run.settings.open_tables import open_tables
from gating.run.settings.read import is_place_given, read_settings
from gating.run.settings.recall import recall
from gating.run.sweeps import begins_later, noting_failure
from gating.storage.folders import replacing_folder
from gating.tracking.redaction import redact_file, redact_output
from gating.tracking.verbosity import printed_warnings, quiet_libraries
from gating.training.callbacks.gates import SearchEnd, log_kept_heads
from gating.training.module import FineTuning
from gating.training.steps import validation_interval

CONF = str(Path(__file__).resolve().parent / "conf")
GROUPS = {folder.name for folder in Path(CONF).iterdir() if folder.is_dir()}


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Run one configuration, and return the number to optimize; None for a job of a sweep that has failed."""
    hydra_cfg = HydraConfig.get()
    overrides = hydra_cfg.overrides.task
    if hydra_cfg.mode != RunMode.MULTIRUN:
        return guarded_run(cfg, overrides)
    job, sweep = int(hydra_cfg.job.num), Path(hydra_cfg.sweep.dir)
    if begins_later(job):
        return None
    cfg.output_dir = hydra_cfg.runtime.output_dir
    # Processes that are started for more devices run this command again, when its time of day is another.
    sys.argv.append(f"hydra.sweep.dir='{sweep.absolute()}'")
    # Hydra's own note of the command.
    redact_file(sweep / "multirun.yaml")
    with noting_failure(sweep, job=job, overrides=overrides):
        return guarded_run(cfg, overrides)
    return None


def guarded_run(cfg: DictConfig, overrides: Sequence[str] | None = None) -> float | None:
    """Run, and end well in any case; return the number to optimize.

    Args:
        cfg: The configuration, which a run that goes on may take from its folder.
        overrides: What the command line says of it; None if there is none.
    """
    with ending_well(lambda: Path(str(OmegaConf.select(cfg, "output_dir", throw_on_resolution_failure=False)))):
        if overrides is not None:
            for name, value in recall(cfg, overrides, conf=Path(CONF)).items():
                cfg[name] = value
        with naming_settings(cfg):
            return run(cfg)


def run(cfg: DictConfig) -> float | None:
    """Tell the story, and return the number to optimize.

    Each phase goes on from its last checkpoint, if the run was interrupted.
    """
    quiet_libraries()
    settings = read_settings(cfg, groups=GROUPS)
    before = find_run(settings, is_place_given=is_place_given(cfg))
    if before is not None and is_finished(before):
        print(f"The run in {before} is finished; there is nothing to go on with.")
        return optimized_value(before, cfg.optimized_metric)
    work = prepare(cfg, settings, before)
    if is_rank_zero():
        print(f"{work.source.title}: {count_heads(work.model)} heads, {work.total_steps} steps in {work.folder}")
    if work.distillation is not None and work.teacher is None:
        work.teacher = own_teacher(cfg, work)
    if work.objective is None:
        with work.adapted(work.model):
            train(cfg, work, "dense", steps=work.total_steps)
    else:
        if not restore_removed(work):
            with work.adapted(work.model):
                gates = search(cfg, work, work.objective)
            remove_heads(work, work.objective, gates)
        if work.recovery_steps:
            with work.adapted(work.model):
                train(cfg, work, "recovery", steps=work.recovery_steps, first_step=work.search_steps)
    compact = "compact, after recovery" if work.recovery_steps else "compact, without recovery"
    work.measure_metric("compact", compact if work.objective else "dense", splits=work.data.splits[1:])
    if is_rank_zero():
        export(work)
        report(work)
    return optimized_value(work.folder, cfg.optimized_metric) if is_rank_zero() else None


def own_teacher(cfg: DictConfig, work: Run) -> PreTrainedModel:
    """Fine-tune a dense copy of the model with as many steps as the run has, and keep it for other runs."""
    folder, teacher = work.folder / "teacher", deepcopy(work.model)
    if work.goes_on and broadcast(folder.is_dir()):
        teacher = Pretrained(str(folder)).load(work.task.auto_class)
    else:
        with work.adapted(teacher):
            train(cfg, work, "teacher", steps=work.total_steps, model=teacher)
        if is_rank_zero():
            with replacing_folder(folder, overwrite=False, kind="compact model") as new:
                teacher.save_pretrained(new)
                work.processor.save_pretrained(new)
    teacher.to(work.model.device)  # type: ignore[arg-type]
    work.measure_metric("dense", "dense teacher", splits=work.data.splits[1:], model=teacher)
    return teacher


def search(cfg: DictConfig, work: Run, objective: Objective) -> HeadGates:
    """Train weights and gates together while the objective closes gates."""
    gates: HeadGates = instantiate(cfg.gates)(work.model)
    objective.attach(gates)
    num_others = count_heads(work.model) - gates.num_heads
    if num_others and is_rank_zero():
        print(f"{gates.num_heads} heads have a gate; {num_others} in excluded blocks stay besides those that are kept.")
    end = SearchEnd(instantiate(cfg.convergence)) if cfg.convergence else None
    planned = work.search_steps
    work.search_steps = train(cfg, work, "search", steps=planned, gates=gates, callbacks=[end] if end else [])
    reason = end.reason if end and end.reason else "all its steps were taken"
    work.summary.search = {"search_steps": work.search_steps, "search_ended": reason}
    if is_rank_zero():
        print(f"The search ended after {work.search_steps} of {planned} steps: {reason}.")
    objective.update(gates, 1.0)
    work.history.gate_values.append({name: values.tolist() for name, values in gates.by_block().items()})
    work.measure_metric("search", "gates, end of search")
    return gates


def remove_heads(work: Run, objective: Objective, gates: HeadGates) -> None:
    """Turn closed gates into physical removal, and prove that it changed nothing else; in every process alike."""
    check_same(gates.log_alpha, "The location of the gates")
    kept = objective.kept(gates)
    if kept is not None:
        check_same(kept.float(), "The choice of heads")
    log_kept_heads(work.loggers, gates, objective, kept=kept, step=work.search_steps - 1)
    with work.summary.timed("finalize"), printed_warnings():
        finalized = finalize(work.model, gates, kept=kept, probe=work.probe_batch())
    work.history.folded = {name: list(values) for name, values in finalized.folded.items()}
    work.measure_metric("removed", "after removal")
    if is_rank_zero():
        keep_removed(work)


def train(
    cfg: DictConfig,
    work: Run,
    phase: str,
    *,
    steps: int,
    first_step: int = 0,
    gates: HeadGates | None = None,
    callbacks: Sequence[pl.Callback] = (),
    model: PreTrainedModel | None = None,
) -> int:
    """Train one phase of the run, and return how many steps it took; a teacher is trained apart from the run."""
    cfg = OmegaConf.merge(cfg, {"phase": phase})  # type: ignore[assignment]
    apart, model = model is not None, model or work.model
    module = FineTuning(
        model,
        task=work.task,
        metrics=work.prepared.metrics,
        score=work.prepared.score,
        optimizer=instantiate(cfg.optimizer),
        scheduler=instantiate(cfg.scheduler),
        total_steps=work.total_steps,
        first_step=first_step,
        gates=gates,
        objective=work.objective if gates is not None else None,
        distillation=work.distillation if work.teacher is not None else None,
        teacher=work.teacher,
        seed=cfg.seed,
        compiler="inductor" if cfg.compile else None,
    )
    chosen = [instantiate(callback) for callback in cfg.callbacks.values() if callback is not None]
    trainer: pl.Trainer = instantiate(cfg.trainer, _partial_=True)(
        max_epochs=-1,
        max_steps=steps,
        # Steps are counted over the run, of which a teacher's are no part.
        logger=False if apart else work.loggers,
        callbacks=callbacks_of_phase(
            work,
            phase,
            [*callbacks, *chosen],
            apart=apart,
            shows_progress=cfg.trainer.get("enable_progress_bar", True),
            max_time=OmegaConf.to_container(cfg.trainer).get("max_time"),  # type: ignore[union-attr]
        ),
        max_time=None,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in chosen) and not apart,
        # Where Lightning has SLURM's checkpoints; those of one phase are not for the next.
        default_root_dir=work.checkpoints / phase,
        val_check_interval=validation_interval(cfg.trainer, num_batches=work.data.num_batches()),
        use_distributed_sampler=False,
    )
    return work.fit(trainer, module, phase, batches_before=first_step * cfg.trainer.accumulate_grad_batches)


def check_groups(arguments: Sequence[str]) -> None:
    """Stop where a group of settings is taken away, on which Hydra shows its insides."""
    for argument in arguments:
        group, _, option = argument.partition("=")
        if option in ("null", "None") and (Path(CONF) / group).is_dir():
            options = ", ".join(sorted(path.stem for path in (Path(CONF) / group).glob("*.yaml")))
            sys.exit(f"error: {argument}: {group} is a group of settings; choose one of {options}.")


def command_line() -> None:
    """Run the command; settings that Hydra can make nothing of end in one sentence, too."""
    redact_output()
    check_groups(sys.argv[1:])
    sys.argv[1:] = open_tables(sys.argv[1:], conf=Path(CONF))
    # Hydra hands its errors on then.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if any(frame.name == guarded_run.__name__ for frame in traceback.extract_tb(error.__traceback__)):
            raise
        sentence = explain(error)
        hint = (
            " Put quotes around a value with =, commas or brackets: \"NAME='VALUE'\"." if "grammar" in sentence else ""
        )
        sys.exit(f"error: {sentence}{hint}")


if __name__ == "__main__":
    command_line()
