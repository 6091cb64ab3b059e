"""The settings of one run: composed by Hydra, validated, and constant from then on."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gating.run.folder.contents import Phase, RunPaths
from gating.run.folder.stored_settings import absolute_path, with_absolute_paths
from gating.tracking.redaction import redact_settings

__all__ = ["Settings", "as_plain", "is_dense", "resolve"]


@dataclass(frozen=True)
class Settings:
    """Validated settings of one run.

    :attr:`values` and :meth:`of_phase` return copies of all settings as plain values, groups such as ``trainer`` too.

    Attributes:
        paths: Folders of the run and of its checkpoints.
        seed: Seed of the data's split and order, new weights, dropout and gates.
        recovery: Share of the optimizer steps after the removal.
        compile: Whether to compile training steps.
        gradient_checkpointing: Whether to recompute activations in the backward pass.
        recovery_keep: Weights that the recovery, or a dense run, ends with: those of the ``best`` validation, or the
            ``last`` ones.
        optimized_metric: Name in ``metrics.json`` of the number that the run returns; None for the validation score.
        has_own_folder: Whether the command names the run's folder; the default is the time of day.
    """

    paths: RunPaths
    seed: int
    recovery: float
    compile: bool
    gradient_checkpointing: bool
    recovery_keep: str
    optimized_metric: str | None
    has_own_folder: bool
    # It is read-only and has its interpolations.
    _composed: DictConfig
    # Resolved and checked; without the settings of data that are left to the task.
    _values: Mapping[str, Any]

    @classmethod
    def of(cls, composed: Mapping[str, Any], *, data: Mapping[str, Any]) -> "Settings":
        """Return the settings of a composed configuration that was checked.

        ``data`` has the settings of data that are not left to the task.
        """
        values = {**resolve(composed), "data": dict(data)}
        # The time of day in it is resolved once.
        frozen = OmegaConf.create({**composed, "output_dir": values["output_dir"]})
        OmegaConf.set_readonly(frozen, True)
        names = ("seed", "recovery", "compile", "gradient_checkpointing", "recovery_keep")
        return cls(
            paths=RunPaths(Path(str(values["output_dir"])), Path(str(values["paths"]["checkpoints"]))),
            **{name: values[name] for name in (*names, "optimized_metric")},
            has_own_folder="${now:" not in str(composed["output_dir"]),
            _composed=frozen,
            _values=values,
        )

    @property
    def values(self) -> dict[str, Any]:
        """All settings as plain values, without those of ``data`` that are left to the task."""
        return dict(deepcopy(self._values))

    def freezes(self, phase: Phase) -> bool:
        """Return whether the weights stay as they are in a phase; a teacher's are trained."""
        freeze = self._values["optimizer"].get("freeze", False)
        return phase == Phase.SEARCH if freeze == "search" else bool(freeze) and phase != Phase.TEACHER

    def of_phase(self, phase: Phase) -> dict[str, Any]:
        """Return all settings as plain values, with the interpolation ``${phase}`` resolved."""
        return resolve({**as_plain(self._composed), "phase": phase.value})

    def in_folder(self, folder: Path) -> "Settings":
        """Return the same settings with another folder of the run."""
        return self._with(output_dir=str(folder))

    def with_budget(self, budget: Mapping[str, Any]) -> "Settings":
        """Return the same settings with some settings of the objective replaced by measured ones."""
        changed = self._with(objective={**as_plain(self._composed)["objective"], **budget})
        return replace(changed, has_own_folder=self.has_own_folder)

    def to_yaml(self) -> str:
        """Return all settings as YAML, with absolute paths and without secrets."""
        plain = as_plain(self._composed)
        plain["output_dir"] = absolute_path(str(self.paths.folder))
        plain["paths"] = {**plain["paths"], "checkpoints": absolute_path(str(self.paths.checkpoints))}
        return OmegaConf.to_yaml(OmegaConf.create(redact_settings(with_absolute_paths(resolve(plain)))))

    def _with(self, **changes: Any) -> "Settings":
        return Settings.of({**as_plain(self._composed), **changes}, data=self._values["data"])


def as_plain(composed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a command as nested plain values, with their interpolations."""
    plain: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(composed))  # type: ignore[assignment, call-overload]
    return plain


def is_dense(settings: Mapping[str, Any]) -> bool:
    """Return whether the settings of a run are those of a dense one."""
    return str(settings["objective"].get("_target_")).endswith(".NoObjective")


def resolve(composed: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as nested plain values, with the values of their interpolations."""
    values: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(composed), resolve=True)  # type: ignore[assignment, call-overload]
    return values
