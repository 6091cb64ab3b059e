"""What comes before a run's first step: everything is checked and loaded, and only then the run's folder is opened."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel

from gating.compact.save import Processor
from gating.data.datamodule import ExampleDataModule
from gating.data.examples import as_examples
from gating.data.held_out import hold_out
from gating.discovery.find import find_attention_blocks
from gating.distributed.collectives import broadcast, is_rank_zero, rank
from gating.distributed.launch import check_processes, root_device, start_processes
from gating.errors import InputError
from gating.gates import HeadGates
from gating.models.adapters import Adapters, check_adapters
from gating.models.blueprint import make_blueprint
from gating.models.gradient_checkpointing import check_gradient_checkpointing, enable_gradient_checkpointing
from gating.models.sources import ModelSource, teacher_source
from gating.objectives import NoObjective, Objective
from gating.pruning.speedup import num_heads_for_speedup
from gating.run.folder.state import check_places, check_places_of, take_folder
from gating.run.folder.stored_settings import read_settings_of
from gating.run.run import Run
from gating.run.settings.check import take_arguments
from gating.run.settings.read import make_objective, try_settings
from gating.storage.folders import check_folder
from gating.tasks.base import Prepared, Task
from gating.tracking.loggers import resolve_mode
from gating.tracking.redaction import redact_settings
from gating.training.distillation import Distillation, check_teacher
from gating.training.steps import count_evaluated, count_steps

__all__ = ["prepare"]


def prepare(cfg: DictConfig, settings: dict[str, Any], before: Path | None) -> Run:
    """Check everything, load data and model, and only then start other processes and open the run's folder.

    Args:
        cfg: The configuration.
        settings: The same as plain values.
        before: Folder of the run that is to go on; None for a new one.
    """
    num_processes = check_processes(settings["trainer"])
    if is_rank_zero():
        _check_places(cfg, settings, before)
    try_settings(cfg)
    resolve_mode(cfg.logger.get("mode", "auto"))
    pl.seed_everything(cfg.seed, verbose=False)
    task = instantiate(cfg.task)
    objective = make_objective(settings["objective"])
    gated = not isinstance(objective, NoObjective)
    source: ModelSource = instantiate(cfg.model, _convert_="all")
    adapters: Adapters = instantiate(cfg.adapters, _convert_="all")
    blueprint = make_blueprint(source, task.auto_class)
    check_adapters(adapters, source, blueprint)
    if cfg.gradient_checkpointing:
        check_gradient_checkpointing(blueprint, compiled=cfg.compile)
    discovers = cfg.gates.get("discover")
    if not discovers:
        # On the model without weights: whether gates and budget fit it is known before anything is loaded.
        if gated:
            objective.attach(instantiate(cfg.gates)(blueprint))
        else:
            find_attention_blocks(blueprint)
    processor, prepared, data = _load_data(settings["data"], task, source, blueprint, seed=cfg.seed)
    data.shard(num_processes)
    model = source.load(task.auto_class, **prepared.config)
    if discovers:
        # What is found has to be tried out, which takes weights.
        gates = instantiate(cfg.gates)(model, probe=data.probe_batch())
        if gated:
            objective.attach(gates)
            _check_emptying(gates, settings["objective"])
        gates.remove()
    if cfg.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    distillation, teacher = _load_teacher(settings["distillation"], task, model, data)
    total_steps = count_steps(settings["trainer"], num_batches=data.num_batches())
    num_evaluated = {
        split: count_evaluated(settings["trainer"], split, num_batches=len(data.evaluation_dataloader(split)))
        for split in data.splits[1:]
    }
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
        num_evaluated=num_evaluated,
        distillation=distillation,
        teacher=teacher,
    )
    start_processes(settings["trainer"], num_processes)
    if settings["objective"].get("speedup"):
        work.objective = _budget_for_speedup(cfg, work, settings, before)
    data.shard(num_processes, index=rank())
    _open_folder(cfg, work, settings, before)
    return work


def _check_places(cfg: DictConfig, settings: Mapping[str, Any], before: Path | None) -> None:
    """Make sure that the run can write to its places, and that they are its own; one that goes on keeps its folder."""
    if before is None:
        check_folder(Path(cfg.output_dir), overwrite=cfg.overwrite)
        check_places(Path(cfg.output_dir), Path(cfg.paths.checkpoints), settings=settings)
    else:
        cfg.output_dir = str(before)
        check_places_of(before, Path(cfg.paths.checkpoints), before=read_settings_of(before)["paths"]["checkpoints"])


def _check_emptying(gates: HeadGates, objective: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if a layer may be asked to do without a head, and it is not known how."""
    if objective.get("min_per_layer"):
        return
    for block in gates.attention_blocks():
        if block.spec.returns == "unknown":
            instead = "objective" if "min_per_layer" in objective else "objective=budget objective"
            raise InputError(
                f"{block.name} ({type(block.module).__name__}) cannot be left without a head: what it returns then was "
                f"not understood. Keep one in each layer with {instead}.min_per_layer=1."
            )


def _load_data(
    settings: dict[str, Any], task: Task, source: ModelSource, blueprint: PreTrainedModel, *, seed: int
) -> tuple[Processor, Prepared, ExampleDataModule]:
    """Load the examples from their source, prepare them, and get ready to serve them in batches."""
    settings = dict(settings)
    batching = take_arguments(ExampleDataModule, settings)
    preparation = take_arguments(task.prepare, settings)
    examples = as_examples(instantiate(settings, _convert_="all"), target=settings["_target_"])
    has_classes = getattr(task, "has_classes", False)
    examples = hold_out(examples, settings=preparation, has_classes=has_classes, seed=seed)
    processor = task.load_processor(source, blueprint, examples.splits)
    prepared = task.prepare(examples, processor, blueprint, **preparation)
    data = ExampleDataModule(prepared.splits, collate=prepared.collate, order_seed=seed, **batching)
    return processor, prepared, data


def _load_teacher(
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


def _budget_for_speedup(cfg: DictConfig, work: Run, settings: dict[str, Any], before: Path | None) -> Objective:
    """Measure on this device how many heads may stay for the model to be so much faster, and make that the budget."""
    speedup, num_heads = settings["objective"]["speedup"], 0
    if before is not None:
        num_heads = read_settings_of(before)["objective"]["num_heads"]
    elif is_rank_zero():
        work.model.to(root_device(settings["trainer"]))  # type: ignore[arg-type]
        gates = instantiate(cfg.gates)(work.model)
        gates.remove()
        num_heads = num_heads_for_speedup(work.model, work.probe_batch(), speedup=speedup, gates=gates)
        print(f"{num_heads} heads, evenly spread over its layers, make the model {speedup} times as fast here.")
    num_heads = broadcast(num_heads)
    settings["objective"]["num_heads"] = cfg.objective.num_heads = num_heads
    objective: Objective = make_objective(settings["objective"])
    return objective


def _open_folder(cfg: DictConfig, work: Run, settings: dict[str, Any], before: Path | None) -> None:
    """Make the run's folder, or take the one it has, and what writes to it."""
    # The time of day in its name is another one in another process.
    cfg.output_dir = broadcast(str(before or cfg.output_dir))
    work.folder, work.checkpoints = Path(cfg.output_dir), Path(cfg.paths.checkpoints)
    work.goes_on = before is not None
    if is_rank_zero():
        shown = redact_settings(OmegaConf.to_container(cfg, resolve=True))
        config = OmegaConf.to_yaml(OmegaConf.create(shown)) if before is None else None
        work.lock = take_folder(work.folder, work.checkpoints, config=config, ckpt_path=cfg.ckpt_path)
    work.loggers = instantiate(cfg.logger, _partial_=True)(work.folder, run_config=settings, resume=work.goes_on)
