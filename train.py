"""Fine-tune a transformer with a gate on every attention head, remove the closed ones, recover, export.

    python train.py --help

A run is a story, told by `run` below with one function for each stage.
"""

import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger
from rich.console import Console
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from gating import Distillation, HeadGates, NoObjective, Objective, finalize, save_compact
from gating.card import heads_per_layer
from gating.distillation import check_teacher
from gating.errors import explain, is_input_error
from gating.export import Processor
from gating.folder import check_folder, clear_folder
from gating.history import History
from gating.lightning.adapters import Adapters, check_adapters
from gating.lightning.callbacks import GateMonitor, SearchEnd
from gating.lightning.data import ExampleDataModule
from gating.lightning.evaluation import evaluate
from gating.lightning.loggers import close_wandb, log_outcome, log_samples, resolve_mode
from gating.lightning.memory import check_checkpointing, save_memory
from gating.lightning.models import ModelSource, make_blueprint, teacher_source
from gating.lightning.module import FineTuning
from gating.lightning.progress import PhaseProgressBar
from gating.lightning.quiet import quiet_libraries
from gating.lightning.ranks import (
    check_processes,
    check_same,
    from_first,
    is_first,
    rank,
    root_device,
    start_processes,
    stop_processes,
)
from gating.lightning.steps import check_validation, count_steps, used_batches
from gating.lightning.tasks.base import Prepared, Task
from gating.lightning.tasks.samples import WritesText
from gating.measure import compare_latency, count_heads
from gating.redaction import redact_file, redact_output, redact_settings
from gating.report import print_report, print_samples, save_pictures
from gating.settings import check_settings, take_arguments
from gating.speedup import check_speedup, num_heads_for_speedup
from gating.summary import Summary

CONF = str(Path(__file__).resolve().parent / "conf")


@dataclass
class Run:
    """What the stages hand on to each other."""

    cfg: DictConfig
    task: Task
    objective: Objective | None
    processor: Processor
    prepared: Prepared
    data: ExampleDataModule
    source: ModelSource
    adapters: Adapters
    model: PreTrainedModel
    dense_config: PreTrainedConfig
    total_steps: int
    search_steps: int
    distillation: Distillation | None = None
    teacher: PreTrainedModel | None = None
    loggers: list[Logger] = field(default_factory=list)
    history: History = field(default_factory=History)
    summary: Summary = field(default_factory=Summary)


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(cfg: DictConfig) -> None:
    """Run one configuration."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        cfg.output_dir = HydraConfig.get().runtime.output_dir
        # Processes that are started for more devices run this command again, when its time of day is another.
        sys.argv.append(f"hydra.sweep.dir='{Path(cfg.output_dir).parent}'")
        # Hydra's own note of the command.
        redact_file(Path(cfg.output_dir).parent / "multirun.yaml")
    guarded_run(cfg)


def guarded_run(cfg: DictConfig) -> None:
    """Run; close what is open whatever happens, and end in one sentence and exit code 1 on unusable input."""
    failed = True
    try:
        run(cfg)
        failed = False
    except Exception as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        if not is_input_error(cause):
            raise
        print(f"error: {explain(cause)}", file=sys.stderr)
        sys.exit(1)
    finally:
        if failed:
            stop_processes()
        folder = close_wandb(failed=failed)
        if folder is not None:
            print(f"W&B run  {folder}\n  look   wandb leet {folder}\n  upload wandb sync {folder}")


def run(cfg: DictConfig) -> None:
    """Tell the story."""
    quiet_libraries()
    work = prepare(cfg)
    if is_first():
        print(f"{work.source.title}: {count_heads(work.model)} heads, {work.total_steps} steps in {cfg.output_dir}")
    if work.distillation is not None and work.teacher is None:
        work.teacher = train_teacher(work)
    if work.objective is None:
        with work.adapters.on(work.model):
            train(work, "dense", steps=work.total_steps)
    else:
        with work.adapters.on(work.model):
            gates = search(work, work.objective)
        remove_heads(work, work.objective, gates)
        if work.total_steps > work.search_steps:
            with work.adapters.on(work.model):
                train(work, "recovery", steps=work.total_steps - work.search_steps, first_step=work.search_steps)
    recovered = work.total_steps > work.search_steps
    compact = "compact, after recovery" if recovered else "compact, without recovery"
    measure_metric(work, "compact", compact if work.objective else "dense", splits=work.data.splits[1:])
    if is_first():
        export(work)
        report(work)


def prepare(cfg: DictConfig) -> Run:
    """Check everything, load data and model, and only then start other processes and open the run's folder."""
    settings = read_settings(cfg)
    num_processes = check_processes(settings["trainer"])
    if is_first():
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
        cfg=cfg,
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
        work.objective = budget_for_speedup(work, settings)
    data.divide(num_processes, part=rank())
    open_folder(work, settings)
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
    source = teacher_source(settings["teacher"])
    if source is None:
        return instantiate(own), None
    teacher = source.load(task.auto_class)
    check_teacher(teacher, model, data.probe_batch())
    return instantiate(own), teacher


def budget_for_speedup(work: Run, settings: dict[str, Any]) -> Objective:
    """Measure on this device how many heads may stay for the model to be so much faster, and make that the budget."""
    speedup, num_heads = settings["objective"]["speedup"], 0
    if is_first():
        work.model.to(root_device(settings["trainer"]))  # type: ignore[arg-type]
        num_heads = num_heads_for_speedup(work.model, probe_batch(work), speedup=speedup)
        print(f"{num_heads} heads, evenly spread over its layers, make the model {speedup} times as fast here.")
    num_heads = from_first(num_heads)
    settings["objective"]["num_heads"] = work.cfg.objective.num_heads = num_heads
    objective: Objective = make_objective(settings["objective"])
    return objective


def open_folder(work: Run, settings: dict[str, Any]) -> None:
    """Make the run's folder, and what writes to it."""
    # The time of day in its name is another one in another process.
    work.cfg.output_dir = from_first(str(work.cfg.output_dir))
    if is_first():
        folder = Path(work.cfg.output_dir)
        clear_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        shown = redact_settings(OmegaConf.to_container(work.cfg, resolve=True))
        OmegaConf.save(OmegaConf.create(shown), folder / "config.yaml")
    work.loggers = instantiate(work.cfg.logger, _partial_=True)(work.cfg.output_dir, run_config=settings)


def read_settings(cfg: DictConfig) -> dict[str, Any]:
    """Return the settings as plain values, each of the kind that its place takes."""
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    # Batches, tokens and columns are settings of the data to a user, whoever takes them here.
    places: dict[str, list[Callable[..., Any]]] = {
        "data": [ExampleDataModule, get_method(f"{cfg.task._target_}.prepare")],
        "objective": [check_speedup],
        "distillation": [teacher_source],
    }
    settings["data"] = without_defaults(settings["data"])
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


def train_teacher(work: Run) -> PreTrainedModel:
    """Fine-tune a dense copy of the model with as many steps as the run has, and keep it for other runs."""
    teacher = deepcopy(work.model)
    with work.adapters.on(teacher):
        train(work, "teacher", steps=work.total_steps, model=teacher)
    measure_metric(work, "dense", "dense teacher", splits=work.data.splits[1:], model=teacher)
    if is_first():
        teacher.save_pretrained(Path(work.cfg.output_dir) / "teacher")
        work.processor.save_pretrained(Path(work.cfg.output_dir) / "teacher")
    return teacher


def search(work: Run, objective: Objective) -> HeadGates:
    """Train weights and gates together while the objective closes gates."""
    gates: HeadGates = instantiate(work.cfg.gates)(work.model)
    objective.attach(gates)
    end = SearchEnd(instantiate(work.cfg.convergence)) if work.cfg.convergence else None
    planned = work.search_steps
    work.search_steps = train(work, "search", steps=planned, gates=gates, callbacks=[end] if end else [])
    reason = end.reason if end and end.reason else "all its steps were taken"
    work.summary.search = {"search_steps": work.search_steps, "search_ended": reason}
    if is_first():
        print(f"The search ended after {work.search_steps} of {planned} steps: {reason}.")
    objective.update(gates, 1.0)
    work.history.gate_values.append({name: values.tolist() for name, values in gates.by_block().items()})
    measure_metric(work, "search", "gates, end of search")
    return gates


def remove_heads(work: Run, objective: Objective, gates: HeadGates) -> None:
    """Turn closed gates into physical removal, and prove that it changed nothing else; in every process alike."""
    check_same(gates.log_alpha, "The location of the gates")
    kept = objective.kept(gates)
    if kept is not None:
        check_same(kept.float(), "The choice of heads")
    with work.summary.timed("finalize"):
        finalize(work.model, gates, kept=kept, probe=probe_batch(work))
    measure_metric(work, "removed", "after removal")


def train(
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
    cfg = OmegaConf.merge(work.cfg, {"phase": phase})
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
        callbacks=[PhaseProgressBar(phase), *([] if apart else [GateMonitor(work.history), *callbacks, *chosen])],
        enable_checkpointing=bool(chosen) and not apart,
        default_root_dir=cfg.output_dir,
        val_check_interval=validation_interval(work),
        use_distributed_sampler=False,
    )
    work.data.go_on_after(first_step * cfg.trainer.accumulate_grad_batches)
    with work.summary.timed(phase):
        # from_pretrained leaves models in evaluation mode, and Lightning does not change that.
        trainer.fit(module.train(), datamodule=work.data)
    # Lightning moves models back to the CPU after training.
    model.to(trainer.strategy.root_device)  # type: ignore[arg-type]
    return trainer.global_step


def validation_interval(work: Run) -> int | float:
    """Return after how many batches, or which share of an epoch, to validate; at the latest after an epoch."""
    interval: int | float = work.cfg.trainer.val_check_interval
    used = used_batches(work.cfg.trainer.limit_train_batches, num_batches=work.data.num_batches())
    return min(interval, used) if isinstance(interval, int) else interval


def export(work: Run) -> None:
    """Time the compact model beside the dense one and save it."""
    with work.summary.timed("latency"):
        dense = type(work.model)._from_config(work.dense_config).to(work.model.device, work.model.dtype)
        work.summary.latency = compare_latency(dense, work.model, probe_batch(work))
    work.summary.compare_models(dense, work.model)
    save_compact(
        work.model,
        Path(work.cfg.output_dir) / "compact",
        tokenizer=work.processor,
        report=work.summary.compact_report(work.prepared.final_score or work.prepared.score),
        overwrite=work.cfg.overwrite,
    )


def report(work: Run) -> None:
    """Write the pictures and numbers of the run, and show them."""
    folder = Path(work.cfg.output_dir)
    score, numbers, kept = work.prepared.score, work.summary.flat(), heads_per_layer(work.model)
    save_pictures(folder / "report", work.history, score=score, kept=kept, search_steps=work.search_steps)
    final_score = work.prepared.final_score or score
    work.summary.write(folder / "metrics.json", metric_name=final_score.name, seed=work.cfg.seed)
    log_outcome(work.loggers, numbers, folder / "compact")
    print_report(Console(), kept, work.summary.compact_report(final_score))
    show_samples(work)
    print(f"Everything is in {folder}; the model is in {folder / 'compact'}")


def show_samples(work: Run) -> None:
    """Let the compact model write, if it is one that does, and show what."""
    if not (isinstance(work.task, WritesText) and isinstance(work.processor, PreTrainedTokenizerBase)):
        return
    samples = work.task.write_samples(work.model.eval(), work.processor, work.prepared.splits)
    print_samples(Console(), samples)
    log_samples(work.loggers, samples)
    text = "".join(f"{json.dumps(sample, ensure_ascii=False)}\n" for sample in samples)
    (Path(work.cfg.output_dir) / "report" / "samples.jsonl").write_text(text, encoding="utf-8")


def measure_metric(
    work: Run, key: str, title: str, *, splits: Sequence[str] = ("validation",), model: PreTrainedModel | None = None
) -> None:
    """Evaluate the model as it is now; test data is looked at once, at the end."""
    # What takes long need not be measured before heads are removed: that changes nothing.
    metrics = work.prepared.metrics if key == "search" else work.prepared.all_metrics
    with work.summary.timed("evaluate"):
        for split in splits:
            batches = work.data.evaluation_dataloader(split)
            values = evaluate(model or work.model, batches, task=work.task, metrics=metrics)
            work.summary.add_metrics(key, title, split, values)


def probe_batch(work: Run) -> dict[str, Any]:
    """Return eight long examples of the validation data, without what is right."""
    return {name: tensor.to(work.model.device) for name, tensor in work.data.probe_batch().items()}


def check_groups(arguments: Sequence[str]) -> None:
    """Stop where a group of settings is taken away, on which Hydra shows its insides."""
    for argument in arguments:
        group, _, option = argument.partition("=")
        if option in ("null", "None") and (Path(CONF) / group).is_dir():
            options = ", ".join(sorted(path.stem for path in (Path(CONF) / group).glob("*.yaml")))
            sys.exit(f"error: {argument}: {group} is a group of settings; choose one of {options}.")


if __name__ == "__main__":
    redact_output()
    check_groups(sys.argv[1:])
    main()
