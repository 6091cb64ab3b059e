"""Preparation of a run: checks and loading first, then other processes, then the files of the run's folder."""

import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytorch_lightning as pl
from transformers import PreTrainedConfig, PreTrainedModel

from gating.discovery.find import search_blocks
from gating.distributed.collectives import broadcast, is_rank_zero, rank
from gating.distributed.launch import Devices, check_devices, start_processes
from gating.errors import InputError, loading
from gating.models.adapters import NoAdapters, check_adapters
from gating.models.sources import enable_gradient_checkpointing, load_sharded, make_meta_model
from gating.objectives import ExactBudget, IterativePruning
from gating.run.build import RunObjects, build, build_callbacks, build_objective, build_objects, trains_weights
from gating.run.data import RunData, encode_examples, load_examples
from gating.run.folder import Phase, RunFolder
from gating.run.inputs import check_inputs, describe_inputs, read_inputs
from gating.run.phases import load_teacher
from gating.run.run import Run, RunState
from gating.run.settings import Settings
from gating.run.timing import RunTiming
from gating.sharding.copies import config_without_sharding
from gating.sharding.plan import reshard
from gating.storage.hub import check_upload
from gating.tasks.base import HasLoss
from gating.tracking.loggers import resolve_mode
from gating.training.evaluation import count_steps
from gating.training.progress import check_monitors

if TYPE_CHECKING:
    from gating.teachers.distillation import Distillation


def prepare(settings: Settings, folder: RunFolder) -> Run:
    """Check and load everything, and return the run; no file of the run is written before the end."""
    devices = check_devices(settings.trainer)
    _check_settings(settings, devices)
    # That of the smallest size; all of them share everything but the budget.
    objects = build_objects(settings.each_size[-1])
    check_dtype(settings, objects)
    callbacks = build_callbacks(settings)
    # Each phase builds its own: these are checks.
    build("optimizer", settings.optimizer)
    build("scheduler", settings.scheduler)
    build("trainer", settings.trainer, partial=True)
    pl.seed_everything(settings.seed, verbose=False)
    meta_model = _check_meta_model(settings, objects)
    examples = load_examples(settings, objects)
    data = encode_examples(examples, settings, objects, meta_model, num_processes=devices.num_processes)
    inputs = describe_inputs(
        settings,
        examples.splits,
        classes=list(data.prepared.config.get("id2label", {}).values()),
    )
    before = read_inputs(folder.path) if folder.resumes else None
    if before is not None and is_rank_zero():
        check_inputs(folder.path, before, inputs, allow_changed=objects.data.allow_changed)
    timing = RunTiming(objects.latency, data.module)
    timing.check(meta_model)
    check_monitors(callbacks, data.prepared)
    steps = count_steps(settings.trainer, num_batches=data.module.num_batches())
    if is_rank_zero():
        print(f"Loading {objects.source.title} ...", flush=True)
    state = _load_models(settings, objects, data, meta_model, devices=devices)
    if objects.distillation is not None and state.teacher is None:
        objects = replace(objects, distillation=_checked(settings, objects.distillation, state.model, data))
        reshard(state.model)
    state.dense_steps, state.search_steps = planned_steps(settings, objects, total_steps=steps)
    started = time.monotonic()
    budget = before["budget"] if before else None
    if objects.budget["speedup"] or objects.budget["cost"] == "latency":
        from gating.run.measured_budget import measure_budget, smallest_of

        batches = steps * settings.trainer["accumulate_grad_batches"]
        speedups = [one.objective["speedup"] for one in settings.each_size if one.objective.get("speedup")]
        budget = measure_budget(
            objects, state, data, speedups, timing=timing, device=devices.root, known=budget, batches=batches
        )
        objects = objects.with_budget({**settings.each_size[-1].objective, **smallest_of(budget)})
    if settings.sizes:
        state.smallest = objects.objective  # type: ignore[assignment]
    data.module.shard(devices.num_processes, index=rank())
    # By default the folder is named after the time, which differs between ranks.
    folder.follow(broadcast((folder.path, folder.checkpoints, folder.resumes)))
    settings = settings.in_folder(folder.path)
    if is_rank_zero():
        folder.begin(settings.to_yaml(), {**inputs, "budget": budget})
    return Run(
        settings=settings,
        folder=folder,
        objects=objects,
        data=data,
        dense_config=config_without_sharding(state.model),
        total_steps=steps,
        loggers=objects.make_loggers(folder.path, run_config=settings.model_dump(), resume=folder.resumes),
        started=started,
        timing=timing,
        state=state,
        measured=budget or {},
    )


def _check_settings(settings: Settings, devices: Devices) -> None:
    """Check the token for the hub, the login for W&B, and settings that need a whole model."""
    if is_rank_zero() and settings.push_to_hub is not None:
        check_upload(settings.push_to_hub, setting="push_to_hub")
    resolve_mode(settings.logger.get("mode", "disabled"))
    refused = {
        "compile=true": settings.compile,
        # Its statistics are of whole rows and columns.
        "optimizer=adafactor": "Adafactor" in str(settings.optimizer),
        # It tries removals on the whole model.
        "gates.discover=true": bool(settings.gates.get("discover")),
        "compensate=true": bool(settings.compensate),
    }
    for setting in (name for name, is_given in refused.items() if is_given and devices.is_sharded):
        raise InputError(
            f"{setting} needs a whole model, which trainer=fsdp cuts into shards: leave it out, or use trainer=ddp."
        )


def _check_meta_model(settings: Settings, objects: RunObjects) -> PreTrainedModel:
    """Check adapters, exports, gates and budget against the model without weights, and return that model."""
    if objects.distillation is not None and isinstance(objects.task, HasLoss) and not settings.may_learn_from_itself:
        raise InputError(
            "distillation learns from the logits of a teacher, and this task has a loss of its own on a model without "
            "logits: leave it out. Embeddings learn from a teacher with task.teacher=FOLDER_OR_HUB_NAME."
        )
    if objects.objective is not None:
        _check_plan(settings, objects)
    meta_model = make_meta_model(objects.source, objects.task.auto_class)
    check_adapters(objects.adapters, objects.source)
    if settings.exports:
        from gating.run.exports import check_exports

        check_exports(settings, meta_model)
    if settings.trainer.get("strategy") == "fsdp":
        _check_no_layerdrop(meta_model)
    if settings.gradient_checkpointing and settings.compile:
        raise InputError(
            "gradient_checkpointing=true cannot be combined with compile=true: torch does not support gates in both; "
            "choose one of them."
        )
    if settings.gates.get("discover"):
        return meta_model  # Discovery runs the model, which needs weights.
    if objects.objective is None:
        search_blocks(meta_model, "heads")
    else:
        gates = objects.gates_without_model(meta_model)
        for one in settings.each_size:
            build_objective(one.objective).check(gates)
    return meta_model


def _check_plan(settings: Settings, objects: RunObjects) -> None:
    """Raise ``InputError`` for a plan that trains nothing, or lacks a step or a dense model that is needed."""
    plan = settings.plan
    if plan.fine_tuning and not trains_weights(settings, objects, Phase.DENSE):
        raise InputError(
            f"fine_tuning={plan.fine_tuning} trains weights that optimizer.freeze=true freezes: give "
            "optimizer.freeze=search, which freezes them until the removal, or leave it out."
        )
    if plan.ranks and type(objects.objective) not in (ExactBudget, IterativePruning):
        raise InputError(
            f"fine_tuning={plan.fine_tuning} and recovery={plan.recovery} leave no step in which "
            f"{type(objects.objective).__name__} learns gates: lower one, or leave out the objective."
        )
    if settings.sizes and not plan.ranks:
        name, _ = settings.sizes[0]
        raise InputError(
            f"objective.{name}={settings.objective[name]} makes all sizes of one dense model, and this plan has a "
            "search for each: give fine_tuning=0.67 recovery=0.33, or a sweep (-m)."
        )
    if settings.compensate and not (plan.ranks or settings.freezes(Phase.SEARCH)):
        raise InputError(
            "compensate=true follows the dense model, and this search trains weights while units close: leave it out, "
            "freeze them with optimizer.freeze=search, or give fine_tuning=0.67, which ranks units without a search."
        )


def _checked(
    settings: Settings, distillation: "Distillation", model: PreTrainedModel, data: RunData
) -> "Distillation | None":
    """Return a distillation of outputs that a model has; by default from those that it has, or None."""
    from gating.teachers.teacher import check_outputs

    batch, wanted = data.module.timing_batch("max"), distillation
    for weight in (distillation.hidden_weight, 0.0) if settings.may_learn_from_itself else ():
        wanted = replace(distillation, hidden_weight=weight)
        with suppress(InputError):
            check_outputs(model, batch, distillation=wanted)
            return wanted
    if settings.may_learn_from_itself:
        return None
    check_outputs(model, batch, distillation=wanted)
    return wanted


def _check_no_layerdrop(meta_model: PreTrainedModel) -> None:
    """Raise ``InputError`` for a model that skips layers at random: each process would gather others."""
    config = meta_model.config
    for part in (config, *(value for value in vars(config).values() if isinstance(value, PreTrainedConfig))):
        for name in (name for name, value in vars(part).items() if "layerdrop" in name and value):
            raise InputError(f"{name} skips layers at random, which trainer=fsdp cannot: +model.config.{name}=0.0.")


def _load_models(
    settings: Settings,
    objects: RunObjects,
    data: RunData,
    meta_model: PreTrainedModel,
    *,
    devices: Devices,
) -> RunState:
    """Load the model and a named teacher, and start the other processes: first if each loads its part, else last.

    So errors of a model that is loaded whole come before others are started.
    """
    auto_class, config = objects.task.auto_class, data.prepared.config
    if devices.is_sharded:
        start_processes(settings.trainer, devices.num_processes)
        model = load_sharded(objects.source, auto_class, meta_model, **config)
    else:
        model = objects.source.load(auto_class, **config)
    if settings.gates.get("discover"):
        gates = objects.gates_without_model(model, probe=data.module.timing_batch("max"))
        if objects.objective is not None:
            objects.objective.check(gates)
    if settings.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    if isinstance(objects.task, HasLoss):
        objects.task.adapt(model)
    state = RunState(model)
    if objects.distillation is not None and objects.teacher is not None:
        from gating.teachers.teacher import Teacher

        with loading(f"distillation.teacher={objects.teacher.title}", remedy="Name a model of this task."):
            loaded = load_teacher(objects.teacher, auto_class, is_sharded=devices.is_sharded)
        state.teacher = Teacher(loaded, distillation=objects.distillation)
        state.teacher.check(model, data.module.timing_batch("max"), tokenizer=data.processor)
        for each in (model, loaded):
            reshard(each)
    if not devices.is_sharded:
        start_processes(settings.trainer, devices.num_processes)
    return state


def check_dtype(settings: Settings, objects: RunObjects) -> None:
    """Raise ``InputError`` for trained weights in half precision, which would lose small steps in silence."""
    dtype, has_adapters = getattr(objects.source, "dtype", "float32"), not isinstance(objects.adapters, NoAdapters)
    first = Phase.DENSE if objects.objective is None else Phase.SEARCH
    phases = [first, *([Phase.RECOVERY] * bool(settings.plan.recovery))]
    if dtype != "float32" and not has_adapters and not all(map(settings.freezes, phases)):
        raise InputError(
            f"model.dtype={dtype} loses the small steps of a training. Freeze the weights with optimizer.freeze=true, "
            "train adapters=lora, or leave it out; trainer.precision=bf16-mixed computes in half precision."
        )


def planned_steps(settings: Settings, objects: RunObjects, *, total_steps: int) -> tuple[int, int]:
    """Return the numbers of optimizer steps of the dense model and of the search.

    All are those of the search where the recovery has nothing to train.
    """
    if objects.objective is None:
        return 0, 0
    if trains_weights(settings, objects, Phase.RECOVERY):
        return settings.plan.steps(total_steps)
    if settings.recovery and is_rank_zero():
        print(
            f"optimizer.freeze=true leaves nothing to train after the removal, so all {total_steps} steps are the "
            "search. optimizer.freeze=search trains the weights in a recovery, adapters=lora adapters."
        )
    return 0, total_steps
