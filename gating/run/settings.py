"""The settings of a run: composed by Hydra, those of a resumed run from its folder, checked here once.

Settings of objects, such as ``optimizer.lr``, are checked when the objects are built (:mod:`gating.run.build`). Nothing
here imports torch: a mistake is told at once.
"""

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from gating.errors import InputError, explain, shorten
from gating.plan import Plan, check_sizes, make_plan
from gating.run.folder import CONFIG, Phase, is_finished, is_run, relocated, stored_settings
from gating.storage.identity import leaves
from gating.tracking.redaction import HIDDEN, redact_settings

Group = dict[str, Any]

# Settings of one command, not of a run.
_OF_COMMAND = ("output_dir", "overwrite", "resume", "optimized_metric", "push_to_hub", "sweep")
# Settings that may name a file or folder, or something on the hub.
_OF_DATA = ("data.train", "data.validation", "data.test", "data.path")
_PLACES = (*_OF_DATA, "model.name", "model.tokenizer", "distillation.teacher", "task.teacher")
_GROUPS_OF_PLACES = ("data", "model", "distillation", "task")
# Settings and groups of settings, by what they have no effect on.
_WITHOUT_EFFECT = {
    # These may differ between a run and the command that resumes it.
    "results": (
        *(*_OF_COMMAND, "paths", "logger", "callbacks", "keep_checkpoints", "exports", "model.base_model"),
        *("data.num_workers", "data.allow_changed", "data.about", "latency.max_seconds", "trainer.max_time"),
    ),
    "dense run": (
        *("objective", "gates", "convergence", "fine_tuning", "recovery", "compensate"),
        *("optimizer.gate_lr", "optimizer.multiplier_lr"),
    ),
    # Where these change what is evaluated, as under a limit of batches or in blocks of a text, its counts differ.
    "examples": ("data.batch_size", "data.eval_batch_size", "data.num_workers", "data.max_length", "data.stride"),
}
# In these settings, 1 is one batch and 1.0 is all of them; 1 and 1.0 are the same value of any other setting.
_NUMBERS_OR_SHARES = (
    *("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"),
    *("overfit_batches", "val_check_interval"),
)
# Callbacks of Lightning that change what is trained, or when it ends.
_DECIDING = re.compile(r"EarlyStopping|WeightAveraging|GradientAccumulationScheduler")
# Settings of the objective that may have a list, for as many sizes.
_BUDGETS = ("num_heads", "keep", "speedup")
# The teacher that is the dense state of the run, where it has one.
OWN = "own"
# Objectives that need no search: they rank, or have a budget alone.
_RANKABLE = ("gating.ExactBudget", "gating.IterativePruning")
# Code that a folder from somebody else may name; all other code is named by the command.
_TRUSTED = ("gating.", "torch.optim.", "pytorch_lightning.")
_CODE = re.compile(r".*\b(_target_|trust_remote_code|auto_map|code_revision|use_safetensors)(\..*)?")


class Settings(BaseModel):
    """Settings of one run, described in conf/config.yaml; paths that exist and ``output_dir`` are absolute."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    output_dir: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    overwrite: bool
    resume: str | None
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    fine_tuning: float | None
    recovery: float | None
    recovery_keep: Literal["best", "last"]
    compensate: bool | None
    compile: bool
    gradient_checkpointing: bool
    keep_checkpoints: bool
    optimized_metric: str | None
    push_to_hub: str | None
    exports: list[Literal["onnx", "onnx-int8", "openvino", "openvino-int8", "gguf", "gguf-q8_0"]]
    model: Group
    task: Group
    data: Group
    gates: Group
    adapters: Group
    objective: Group
    convergence: Group | None
    distillation: Group
    optimizer: Group
    scheduler: Group
    latency: Group
    trainer: Group
    callbacks: Group
    logger: Group
    paths: dict[str, str]
    sweep: dict[Literal["max_drop"], Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {"max_drop": 1.0}

    @property
    def plan(self) -> Plan:
        """Shares of the steps, by default those of the objective and of the units with gates."""
        stops = any("EarlyStopping" in str(callback) for callback in self.callbacks.values())
        is_frozen, target = self.freezes(Phase.SEARCH), self.objective.get("_target_")
        return make_plan(
            self.gates.get("units") or "heads",
            fine_tuning=self.fine_tuning,
            recovery=self.recovery,
            can_rank=target in _RANKABLE,
            # Embeddings learn from the model that they begin with.
            has_sizes=bool(self.sizes),
            is_default=target == _RANKABLE[0] and not str(self.task.get("_target_")).endswith(".Embedding"),
            is_frozen=is_frozen,
            learns_from_itself=self.learns_from_itself,
            is_needed=is_frozen or self.recovery_keep == "best" or stops,
        )

    @property
    def sizes(self) -> list[tuple[str, Any]]:
        """Name and value of each budget of a list, the largest model first; empty for one budget.

        ``InputError`` for two lists, for one number, or for a number twice.
        """
        if is_dense({"objective": self.objective}):
            return []
        lists = {name: self.objective[name] for name in _BUDGETS if isinstance(self.objective.get(name), list)}
        for name, values in lists.items():
            check_sizes(f"objective.{name}", values)
        if len(lists) > 1:
            raise InputError(f"objective.{' and objective.'.join(lists)} are lists of sizes: give one of them.")
        return [(name, value) for name, values in lists.items() for value in sorted(values, reverse=name != "speedup")]

    def of_size(self, name: str, value: Any) -> "Settings":
        """Return the settings of a run of one size, with the plan of all."""
        shares = {"fine_tuning": self.plan.fine_tuning, "recovery": self.plan.recovery}
        return self.model_copy(update={"objective": {**self.objective, name: value}, **shares})

    @property
    def each_size(self) -> "list[Settings]":
        """The settings of each size, the largest model first; these alone without a list."""
        return [self.of_size(*size) for size in self.sizes] or [self]

    @property
    def compensates(self) -> bool:
        """Whether output projections are solved after the removal: by default those of a ranking, in a whole model."""
        default = self.plan.ranks and self.trainer.get("strategy") != "fsdp"
        return default if self.compensate is None else self.compensate

    @property
    def may_learn_from_itself(self) -> bool:
        """Whether the dense state of the run is the teacher, where the run has one and the model fits: the default."""
        return bool(self.distillation.get("_target_")) and self.distillation.get("teacher") == OWN

    @property
    def learns_from_itself(self) -> bool:
        """Whether a teacher is asked for, and none is named: it is the dense state of the run."""
        distillation = self.distillation
        return bool(distillation.get("_target_")) and distillation.get("teacher") is None

    def freezes(self, phase: Phase) -> bool:
        """Return whether the weights stay as they are in a phase."""
        freeze = self.optimizer.get("freeze", False)
        return phase == Phase.SEARCH if freeze == "search" else bool(freeze)

    def in_folder(self, folder: Path) -> "Settings":
        """Return the same settings with another folder of the run."""
        return type(self)(**relocated(self.model_dump(), folder))

    def to_yaml(self) -> str:
        """Return all settings as YAML, without secrets."""
        return OmegaConf.to_yaml(OmegaConf.create(redact_settings(self.model_dump())))


def read_settings(cfg: DictConfig | Mapping[str, Any], overrides: Sequence[str] = ()) -> Settings:
    """Return the settings of a command; ``resume=DIR`` takes those that it does not give from the run in DIR."""
    composed = OmegaConf.create(dict(cfg)) if not isinstance(cfg, DictConfig) else cfg
    has_own_folder = "${now:" not in str(OmegaConf.to_container(composed)["output_dir"])  # type: ignore[call-overload, index]
    named = composed.get("resume") not in (None, "auto")
    values = _resolve(composed, may_lack=named)
    folder = _named_run(values, has_own_folder=has_own_folder) if named else None
    stored = {} if folder is None else stored_settings(folder)
    if folder is not None:
        values = _with_overrides(_trusted(stored, folder, overrides), values, overrides)
        values |= {"output_dir": str(folder), "resume": str(folder)}
    settings = _validate(_absolute(values))
    if settings.resume == "auto":
        if not has_own_folder:
            raise InputError("resume=auto needs a folder that the next command finds again: add output_dir=FOLDER.")
        folder = Path(settings.output_dir) if is_run(Path(settings.output_dir)) else None
    if folder is not None and not is_finished(folder):
        _check_same(stored or stored_settings(folder), settings, folder)
    return settings


def is_dense(settings: Mapping[str, Any]) -> bool:
    """Return whether the settings of a run, as plain values, are those of a dense one."""
    return str(settings["objective"].get("_target_")).endswith(".NoObjective")


def has_effect(name: str, *, on: Literal["results", "dense run", "examples"]) -> bool:
    """Return whether a setting, by its dotted name, changes the results of a run, of a dense run, or its examples."""
    return not any(f"{name}.".startswith(f"{other}.") for other in _WITHOUT_EFFECT[on])


def shown_value(name: str, value: Any) -> Any:
    """Return the value of a setting in a comparison: the same file of data may lie elsewhere on another machine."""
    if isinstance(value, list):
        return [shown_value(name, one) for one in value]
    return Path(value).name if name in _OF_DATA and isinstance(value, str) else value


def _resolve(composed: DictConfig, *, may_lack: bool) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=not may_lack)
    except OmegaConfBaseException as error:
        name = getattr(error, "full_key", None)
        needed = name is not None and "Missing mandatory value" in str(error)
        raise InputError(f"{name} is needed: add {name}=... to the command." if needed else explain(error)) from error
    return cast(dict[str, Any], values)


def _validate(values: Mapping[str, Any]) -> Settings:
    try:
        return Settings(**values)
    except ValidationError as error:
        # The member of a union that was read furthest tells most.
        problem = max(error.errors(), key=lambda one: len(one["loc"]))
        name = ".".join(str(part) for part in problem["loc"])
        # The input of a setting that is missing is all settings.
        shown = name if problem["type"] == "missing" else f"{name}={problem['input']}"
        reason = problem["msg"]
        raise InputError(f"{shown} cannot be used: {reason[:1].lower()}{reason[1:]}.") from None


def _named_run(values: Mapping[str, Any], *, has_own_folder: bool) -> Path:
    """Return the folder of the run that ``resume`` names."""
    folder = Path(os.path.abspath(str(values["resume"])))
    if has_own_folder and Path(os.path.abspath(values["output_dir"])) != folder:
        raise InputError(f"The run to resume is in {folder}, and output_dir={values['output_dir']}: leave it out.")
    return folder


def override_names(overrides: Iterable[str]) -> list[str]:
    """Return the dotted names that overrides of a command line set."""
    places = (line.lstrip("+~").partition("=")[0].partition("@")[0] for line in overrides)
    return [place.strip("/").replace("/", ".") for place in places]


def _with_overrides(stored: dict[str, Any], given: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return stored settings with those of the command line on top; an option replaces its whole group."""
    merged = OmegaConf.create({**given, **{name: stored[name] for name in stored if name not in _OF_COMMAND}})
    for name in override_names(overrides):
        if name.partition(".")[0] in given and name not in _OF_COMMAND:
            OmegaConf.update(merged, name, OmegaConf.select(OmegaConf.create(dict(given)), name), merge=False)
    values = cast(dict[str, Any], OmegaConf.to_container(merged, resolve=True))
    if "allow_changed" in values["data"]:
        values["data"]["allow_changed"] = bool(given["data"].get("allow_changed"))  # Each command allows it anew.
    return values


def _trusted(stored: dict[str, Any], folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a folder, maybe from somebody else, if they name no code but ours and Lightning's."""
    given = override_names(overrides)
    for name, value in leaves(stored):
        harmless = name.endswith(".use_safetensors")
        if value in (None, harmless) or any(f"{name}.".startswith(f"{other}.") for other in given):
            continue
        is_code = bool(_CODE.fullmatch(name)) and not str(value).startswith(_TRUSTED)
        if is_code or "${" in str(value):
            again = shlex.quote(f"++{name}={value}")
            raise InputError(
                f"{folder / CONFIG} has {name}={value}, which determines the code that runs. If you trust it, give it "
                f"again: python train.py resume={folder} {again}"
            )
        if HIDDEN in str(value):
            raise InputError(f"{folder / CONFIG} lacks the secret in {name}: give {name}=... again.")
    return stored


def _absolute(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with absolute paths of the run's folders, and of the files and folders that exist."""
    values = OmegaConf.create(settings)
    for name, value in leaves({group: settings.get(group) or {} for group in _GROUPS_OF_PLACES}):
        is_ours = str((settings.get(name.partition(".")[0]) or {}).get("_target_", "gating.")).startswith("gating.")
        # Any setting of a user's own class may name a file.
        if name in _PLACES or not is_ours:
            found = [_absolute_if_there(one) for one in value] if isinstance(value, list) else _absolute_if_there(value)
            OmegaConf.update(values, name, found, merge=False)
    for name, value in [("output_dir", settings.get("output_dir")), *leaves({"paths": settings.get("paths") or {}})]:
        if isinstance(value, str) and value.strip():
            OmegaConf.update(values, name, os.path.abspath(os.path.expanduser(value)), merge=False)
    return cast(dict[str, Any], OmegaConf.to_container(values))


def _absolute_if_there(value: Any) -> Any:
    with suppress(ValueError, OSError):  # No path, or too long for one.
        if isinstance(value, str) and value and os.path.lexists(os.path.expanduser(value)):
            return os.path.abspath(os.path.expanduser(value))
    return value


def _check_same(stored: Mapping[str, Any], settings: Settings, folder: Path) -> None:
    """Raise ``InputError`` if a setting of a resumed run that changes its results differs."""
    # Secrets are not stored.
    old, new = dict(leaves(stored)), dict(leaves(redact_settings(settings.model_dump())))
    # Files and folders may have moved; their contents are compared.
    moved = {name for name in _PLACES if os.path.isabs(str(new.get(name))) and os.path.isabs(str(old.get(name)))}
    deciding = {
        name.rpartition(".")[0]
        for name, value in [*old.items(), *new.items()]
        if name.startswith("callbacks.") and _DECIDING.search(str(value))
    }
    free = {
        name for name in old | new if not has_effect(name, on="results") and name.rpartition(".")[0] not in deciding
    }
    # A secret is given again.
    free |= moved | {name for name, value in old.items() if value == HIDDEN}
    for name in sorted((old | new).keys() - free):
        one, other = old.get(name), new.get(name)
        is_share = name.rpartition(".")[2] in _NUMBERS_OR_SHARES
        if one != other or (is_share and isinstance(one, float) != isinstance(other, float)):
            before, now = (shorten(str(value), most=200) for value in (one, other))
            raise InputError(
                f"The run in {folder} has {name}={before}, and this command {name}={now}: it is resumed with the "
                "settings that it began with. Leave it unchanged, or begin another run in another output_dir."
            )
