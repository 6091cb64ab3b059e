"""Fine-tune a transformer with a gate on every attention head, remove the closed ones, recover, export.

    python train.py --help

A run is a story, told by `run` below with one function for each stage.
"""

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_method, get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Checkpoint
from transformers import PreTrainedModel

from gating import Distillation, HeadGates, NoObjective, Objective, finalize
from gating.distillation import check_teacher
from gating.errors import explain
from gating.export import Processor
from gating.folder import check_folder, replacing_folder
from gating.lightning.adapters import Adapters, check_adapters
from gating.lightning.callbacks import SearchEnd
from gating.lightning.data import ExampleDataModule
from gating.lightning.ending import ending_well
from gating.lightning.loggers import resolve_mode
from gating.lightning.memory import check_checkpointing, save_memory
from gating.lightning.models import ModelSource, Pretrained, make_blueprint, teacher_source
from gating.lightning.module import FineTuning
from gating.lightning.outcome import export, report
from gating.lightning.phase import callbacks_of_phase
from gating.lightning.quiet import quiet_libraries
from gating.lightning.ranks import (
    check_processes,
    check_same,
    from_first,
    is_first,
    rank,
    root_device,
    start_processes,
)
from gating.lightning.removed import keep_removed, restore_removed
from gating.lightning.resume import find_run, read_settings_of, recall
from gating.lightning.run import Run
from gating.lightning.run_folder import is_finished, take_folder
from gating.lightning.steps import check_validation, count_steps, validation_interval
from gating.lightning.tasks.base import Prepared, Task
from gating.measure import count_heads
from gating.redaction import redact_file, redact_output, redact_settings
from gating.settings import check_settings, take_arguments
from gating.speedup import check_speedup, num_heads_for_speedup

CONF = str(Path(__file__).resolve().parent / "conf")


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(cfg: DictConfig) -> None:
    """Run one configuration."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        cfg.output_dir = HydraConfig.get().runtime.output_dir
        # Processes that are started for more devices run this command again, when its time of day is another.
        sys.argv.append(f"hydra.sweep.dir='{Path(cfg.output_dir).parent}'")
        # Hydra's own note of the command.
        redact_file(Path(cfg.output_dir).parent / "multirun.yaml")
    guarded_run(cfg, HydraConfig.get().overrides.task)


def guarded_run(cfg: DictConfig, overrides: Sequence[str] | None = None) -> None:
    """Run, and end well in any case.

    Args:
        cfg: The configuration, which a run that goes on may take from its folder.
        overrides: What the command line says of it; None if there is none.
    """
    with ending_well(lambda: Path(cfg.output_dir)):
        if overrides is not None:
            for name, value in recall(overrides, resume=cfg.resume, ckpt_path=cfg.ckpt_path).items():
                cfg[name] = value
        run(cfg)


def run(cfg: DictConfig) -> None:
    """Tell the story. Each phase goes on from its last checkpoint, if the run was interrupted."""
    quiet_libraries()
    settings = read_settings(cfg)
    before = find_run(settings, is_place_given=not OmegaConf.is_interpolation(cfg, "output_dir"))
    if before is not None and is_finished(before):
        print(f"The run in {before} is finished; there is nothing to go on with.")
        return
    work = prepare(cfg, settings, before)
    if is_first():
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
    if is_first():
        export(work)
        report(work)


def prepare(cfg: DictConfig, settings: dict[str, Any], before: Path | None) -> Run:
    """Check everything, load data and model, and only then start other processes and open the run's folder.

    Args:
        cfg: The configuration.
        settings: The same as plain values.
        before: Folder of the run that is to go on; None for a new one.
    """
    num_processes = check_processes(settings["trainer"])
    if is_first() and before is None:
        check_folder(Path(cfg.output_dir), overwrite=cfg.overwrite)
    try_settings(cfg)
    resolve_mode(cfg.logger.mode)
    pl.seed_everything(cfg.seed, verbose=False)
    task = instantiate(cfg.task)
    objective = make_objective(settings["objective"])
    gated = not isinstance(objective, NoObjective)
    source: ModelSource = instantiate(cfg.model, _convert_="all")
    adapters: Adapters = instantiate(cfg.adapters, _convert_="all")
    blueprint = make_blueprint(source, task.auto_class)
    check_adapters(adapters, source, blueprint)
    if cfg.gradient_checkpointing:
        check_checkpointing(blueprint, compiled=cfg.compile)
    if gated:
        # On the model without weights: whether gates and budget fit it is known before anything is loaded.
        objective.attach(instantiate(cfg.gates)(blueprint))
    processor, prepared, data = load_data(settings["data"], task, source, blueprint, seed=cfg.seed)
    data.divide(num_processes)
    model = source.load(task.auto_class, **prepared.config)
    if cfg.gradient_checkpointing:
        save_memory(model)
    distillation, teacher = load_teacher(settings["distillation"], task, model, data)
    total_steps = count_steps(settings["trainer"], num_batches=data.num_batches())
    check_validation(settings["trainer"]["limit_val_batches"], num_batches=len(data.val_dataloader()))
    work = Run(
        folder=Path(cfg.output_dir),
        checkpoints=Path(cfg.paths.checkpoints),
        seed=cfg.seed,
        task=task,
        objective=objective if gated else None,
        processor=processor,
        prepared=prepared,
        data=data,
        source=source,
        adapters=adapters,
        model=model,
        dense_config=deepcopy(model.config),
        total_steps=total_steps,
        search_steps=max(1, round((1 - cfg.recovery) * total_steps)) if gated else 0,
        distillation=distillation,
        teacher=teacher,
    )
    start_processes(settings["trainer"], num_processes)
    if settings["objective"].get("speedup"):
        work.objective = budget_for_speedup(cfg, work, settings, before)
    data.divide(num_processes, part=rank())
    open_folder(cfg, work, settings, before)
    return work


def try_settings(cfg: DictConfig) -> None:
    """Make once what each phase makes for itself, so that what is wrong with it is known before anything is loaded."""
    for name in ("optimizer", "scheduler", "convergence", *(f"callbacks.{name}" for name in cfg.callbacks)):
        instantiate(OmegaConf.select(cfg, name))


def make_objective(settings: Mapping[str, Any]) -> Any:
    """Make the objective; a speed-up is for this program to turn into a number of heads."""
    own = {name: value for name, value in settings.items() if name != "speedup"}
    return instantiate(own, _convert_="all")


def load_teacher(
    settings: Mapping[str, Any], task: Task, model: PreTrainedModel, data: ExampleDataModule
) -> tuple[Distillation | None, PreTrainedModel | None]:
    """Load the dense model to learn from, if there is to be one; None in its place where the run trains it."""
    if not settings:
        return None, None
    own = {name: value for name, value in settings.items() if name != "teacher"}
    source = teacher_source(teacher=settings["teacher"])
    if source is None:
        return instantiate(own), None
    teacher = source.load(task.auto_class)
    check_teacher(teacher, model, data.probe_batch())
    return instantiate(own), teacher


def budget_for_speedup(cfg: DictConfig, work: Run, settings: dict[str, Any], before: Path | None) -> Objective:
    """Measure on this device how many heads may stay for the model to be so much faster, and make that the budget."""
    speedup, num_heads = settings["objective"]["speedup"], 0
    if before is not None:
        num_heads = read_settings_of(before)["objective"]["num_heads"]
    elif is_first():
        work.model.to(root_device(settings["trainer"]))  # type: ignore[arg-type]
        num_heads = num_heads_for_speedup(work.model, work.probe_batch(), speedup=speedup)
        print(f"{num_heads} heads, evenly spread over its layers, make the model {speedup} times as fast here.")
    num_heads = from_first(num_heads)
    settings["objective"]["num_heads"] = cfg.objective.num_heads = num_heads
    objective: Objective = make_objective(settings["objective"])
    return objective


def open_folder(cfg: DictConfig, work: Run, settings: dict[str, Any], before: Path | None) -> None:
    """Make the run's folder, or take the one it has, and what writes to it."""
    # The time of day in its name is another one in another process.
    cfg.output_dir = from_first(str(before or cfg.output_dir))
    work.folder, work.checkpoints = Path(cfg.output_dir), Path(cfg.paths.checkpoints)
    work.goes_on = before is not None
    if is_first():
        shown = redact_settings(OmegaConf.to_container(cfg, resolve=True))
        config = OmegaConf.to_yaml(OmegaConf.create(shown)) if before is None else None
        work.lock = take_folder(work.folder, work.checkpoints, config=config, ckpt_path=cfg.ckpt_path)
    work.loggers = instantiate(cfg.logger, _partial_=True)(work.folder, run_config=settings, goes_on=work.goes_on)


def read_settings(cfg: DictConfig) -> dict[str, Any]:
    """Return the settings as plain values, each of the kind that its place takes."""
    if get_object(cfg.objective._target_) is NoObjective:
        # What an experiment says of budgets is not meant for its dense run.
        cfg.objective = {"_target_": cfg.objective._target_}
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    # Batches, tokens and columns are settings of the data to a user, whoever takes them here.
    places: dict[str, list[Callable[..., Any]]] = {
        "data": [ExampleDataModule, get_method(f"{cfg.task._target_}.prepare")],
        "objective": [check_speedup],
        "distillation": [teacher_source],
    }
    settings["data"] = without_defaults(settings["data"])
    if get_object(cfg.objective._target_) is NoObjective:
        # What an experiment says of budgets is not meant for its dense run.
        settings["objective"] = {"_target_": cfg.objective._target_}
    groups = {"convergence", *(folder.name for folder in Path(CONF).iterdir() if folder.is_dir())}
    check_settings(settings, groups=groups, also=places)
    check_speedup(**{name: settings["objective"].get(name) for name in ("speedup", "num_heads", "keep")})
    return settings


def without_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the settings of data that are left to the task, or that only other tasks take."""
    own = inspect.signature(get_method(settings["_target_"])).parameters
    return {name: value for name, value in settings.items() if value is not None or name in own}


def load_data(
    settings: dict[str, Any], task: Task, source: ModelSource, blueprint: PreTrainedModel, *, seed: int
) -> tuple[Processor, Prepared, ExampleDataModule]:
    """Load the examples from their source, prepare them, and get ready to serve them in batches."""
    settings = dict(settings)
    batching = take_arguments(ExampleDataModule, settings)
    preparation = take_arguments(task.prepare, settings)
    examples = instantiate(settings)
    processor = task.load_processor(source, blueprint, examples.splits)
    prepared = task.prepare(examples, processor, blueprint, **preparation)
    data = ExampleDataModule(prepared.splits, collate=prepared.collate, order_seed=seed, **batching)
    return processor, prepared, data


def own_teacher(cfg: DictConfig, work: Run) -> PreTrainedModel:
    """Fine-tune a dense copy of the model with as many steps as the run has, and keep it for other runs."""
    folder, teacher = work.folder / "teacher", deepcopy(work.model)
    if work.goes_on and from_first(folder.is_dir()):
        teacher = Pretrained(str(folder)).load(work.task.auto_class)
    else:
        with work.adapted(teacher):
            train(cfg, work, "teacher", steps=work.total_steps, model=teacher)
        if is_first():
            with replacing_folder(folder, overwrite=True) as new:
                teacher.save_pretrained(new)
                work.processor.save_pretrained(new)
    teacher.to(work.model.device)  # type: ignore[arg-type]
    work.measure_metric("dense", "dense teacher", splits=work.data.splits[1:], model=teacher)
    return teacher


def search(cfg: DictConfig, work: Run, objective: Objective) -> HeadGates:
    """Train weights and gates together while the objective closes gates."""
    gates: HeadGates = instantiate(cfg.gates)(work.model)
    objective.attach(gates)
    end = SearchEnd(instantiate(cfg.convergence)) if cfg.convergence else None
    planned = work.search_steps
    work.search_steps = train(cfg, work, "search", steps=planned, gates=gates, callbacks=[end] if end else [])
    reason = end.reason if end and end.reason else "all its steps were taken"
    work.summary.search = {"search_steps": work.search_steps, "search_ended": reason}
    if is_first():
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
    with work.summary.timed("finalize"):
        finalize(work.model, gates, kept=kept, probe=work.probe_batch())
    work.measure_metric("removed", "after removal")
    if is_first():
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
    chosen = [instantiate(callback) for callback in cfg.callbacks.values()]
    trainer: pl.Trainer = instantiate(cfg.trainer, _partial_=True)(
        max_epochs=-1,
        max_steps=steps,
        # Steps are counted over the run, of which a teacher's are no part.
        logger=False if apart else work.loggers,
        callbacks=callbacks_of_phase(work, phase, [*callbacks, *chosen], apart=apart),
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
    # Hydra hands its errors on then.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        main()
    except Exception as error:
        if any(frame.name == guarded_run.__name__ for frame in traceback.extract_tb(error.__traceback__)):
            raise
        sys.exit(f"error: {explain(error)}")


if __name__ == "__main__":
    command_line()
