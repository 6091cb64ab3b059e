"""The settings of a run: read as plain values and checked, before anything is loaded."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from hydra.utils import get_method, get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from gating import tasks
from gating.data.datamodule import ExampleDataModule
from gating.errors import InputError
from gating.models.sources import teacher_source
from gating.objectives.none import NoObjective
from gating.pruning.speedup import check_speedup
from gating.run.optimized import check_optimized
from gating.run.settings.check import check_complete, check_settings, keywords, locate_target

__all__ = ["is_place_given", "make_objective", "read_settings", "try_settings"]


def read_settings(cfg: DictConfig, *, groups: Collection[str]) -> dict[str, Any]:
    """Return the settings as plain values, each of the kind that its place takes.

    Args:
        cfg: The configuration; what it says of budgets is left out of it for a dense run.
        groups: Names of the groups of settings.

    Raises:
        ValueError: A setting is missing, unknown, of another kind than its place takes, or contradicts another one.
    """
    check_complete(OmegaConf.to_container(cfg), groups=groups)  # type: ignore[arg-type]
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
    settings["data"] = _without_defaults(settings["data"])
    check_settings(settings, groups={"convergence", *groups}, also=places)
    check_optimized(settings["optimized_metric"])
    check_speedup(**{name: settings["objective"].get(name) for name in ("speedup", "num_heads", "keep")})
    return settings


def is_place_given(cfg: DictConfig) -> bool:
    """Say whether the command names the run's folder; the default is the time of day."""
    return "${now:" not in str(OmegaConf.to_container(cfg, resolve=False)["output_dir"])  # type: ignore[call-overload,index]


def try_settings(cfg: DictConfig) -> None:
    """Make once what each phase makes for itself, so that what is wrong with it is known before anything is loaded."""
    for name in ("optimizer", "scheduler", "convergence", *(f"callbacks.{name}" for name in cfg.callbacks)):
        instantiate(OmegaConf.select(cfg, name))


def make_objective(settings: Mapping[str, Any]) -> Any:
    """Make the objective; a speed-up is for this program to turn into a number of heads."""
    own = {name: value for name, value in settings.items() if name != "speedup"}
    return instantiate(own, _convert_="all")


def _without_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the settings of data that are left to the task, or that only other tasks take."""
    own = inspect.signature(locate_target(settings["_target_"], "data.")).parameters
    for name, parameter in own.items():
        is_named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if is_named and parameter.default is parameter.empty and name not in settings:
            raise InputError(f"data.{name} is needed, which {settings['_target_']} takes: add data.{name}=...")
    elsewhere = {name for task in tasks.__all__ for name in keywords(getattr(tasks, task).prepare)}
    left = elsewhere | keywords(ExampleDataModule)
    if not settings["_target_"].startswith("gating."):
        left |= settings.keys()  # The option whose source it replaces may have any.
    return {name: value for name, value in settings.items() if value is not None or name in own or name not in left}
