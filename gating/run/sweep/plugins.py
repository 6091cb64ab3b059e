"""A sweep as Hydra runs it: the sweeper of ``sweep=...`` with dense jobs first, and the callback with the report."""

import re
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from gating.errors import InputError, explain, is_input_error
from gating.run.settings import has_effect
from gating.storage.files import write_atomically

# Hydra loads its own plugins anew at this call; a class that is made from one of them before is of another one.
Plugins.instance()

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # noqa: E402

_BUDGET = re.compile(r"\+*objective\.(num_\w+|keep|speedup)(\.\w+)?=")
_NUMBERS, _PICTURE = "report/tradeoff.json", "report/tradeoff.png"


class DenseFirst(BasicSweeper):
    """Runs the product of the swept settings, as Hydra's basic sweeper, after the dense jobs that they compare with."""

    def _parse_config(self) -> list[str]:
        """Return the settings that the chosen group sweeps, without its budget if the command has another."""
        assert self.config is not None
        params: list[str] = super()._parse_config()
        if any(_BUDGET.match(line) for line in self.config.hydra.overrides.task):
            return [line for line in params if not _BUDGET.match(line)]
        return params

    @staticmethod
    def split_arguments(overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """Return the overrides of all jobs, in batches: of each dense job once, then of the others."""
        (product,) = BasicSweeper.split_arguments(overrides, None)
        varying = {override.get_key_element() for override in overrides if override.is_sweep_override()}
        dense = [[*(line for line in job if not _without_effect(line, varying)), "objective=none"] for job in product]
        first = [lines for number, lines in enumerate(dense) if lines not in dense[:number]]
        others = [job for job in product if "objective=none" not in job]
        return [list(batch) for batch in BasicSweeper.split_overrides_to_chunks([*first, *others], max_batch_size)]


def _without_effect(line: str, varying: set[str]) -> bool:
    """Return whether an override is left out of a dense job."""
    key = line.partition("=")[0]
    name = key.lstrip("+").partition("@")[0]
    # Other settings of gates stay, but their values do not make several dense jobs.
    return not has_effect(name, on="dense run") and (name.partition(".")[0] == "objective" or key in varying)


def register_sweeper() -> None:
    """Make the sweeper known to Hydra, which instantiates plugins by names in its package of plugins alone."""
    DenseFirst.__module__ = "hydra_plugins.head_gating"
    Plugins.instance().register(DenseFirst)
    # The package exists if a plugin is installed.
    package: Any = sys.modules.setdefault("hydra_plugins", ModuleType("hydra_plugins"))
    package.head_gating = sys.modules[__name__]


class SweepReport(Callback):
    """Show the runs of a sweep. Hydra makes it for every command, and turns errors but ``SystemExit`` into warnings."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Take the folder of the sweep, or exit if another process has it or another sweep is there."""
        from gating.distributed.collectives import is_rank_zero
        from gating.run.sweep import jobs  # A lone run has none.

        if not is_rank_zero():
            return
        goes_on = config.get("resume") is not None or bool(config.get("overwrite"))
        try:
            jobs.begin_sweep(Path(config.hydra.sweep.dir), swept=_swept(config), goes_on=goes_on)
        except (InputError, OSError) as error:
            sys.exit(f"error: {explain(error)}")

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Show the choice among the finished jobs, then the failed ones; exit with code 1 if there are any."""
        from gating.distributed.collectives import is_rank_zero
        from gating.run.sweep import jobs

        if not is_rank_zero():
            return
        failed: dict[str, str] = {}
        try:
            _report(config, failed)
        except Exception as error:
            if not is_input_error(error):
                traceback.print_exc()
            failed["the report"] = explain(error)
        jobs.end_sweep()
        if failed:
            print(f"error: {len(failed)} job(s) of the sweep failed:", file=sys.stderr)
            print(*(f"  {name}: {reason}" for name, reason in failed.items()), sep="\n", file=sys.stderr)
            sys.exit(1)


def _report(config: DictConfig, failed: dict[str, str]) -> None:
    """Show and write the choice among the finished jobs; add the others to ``failed``, each with the reason."""
    from gating.run.sweep.choice import Choice, as_json, print_choice, write_picture
    from gating.run.sweep.results import read_runs

    folder = Path(config.hydra.sweep.dir)
    runs, reasons = read_runs(folder)
    failed |= reasons
    if not runs:
        return
    search = _best_trial(folder) if "optuna" in str(config.hydra.sweeper.get("_target_")) else None
    choice = Choice(runs, max_drop=config.sweep.max_drop, search=search)
    print_choice(choice)
    write_atomically(folder / _NUMBERS, as_json(choice, failed=failed) + "\n")
    write_picture(choice, folder / _PICTURE)
    print(f"The picture is in {folder / _PICTURE}, the numbers are in {folder / _NUMBERS}")


def _best_trial(folder: Path) -> str:
    """Return a sentence on the best trial of Optuna's sweeper, which only logs it."""
    from gating.run.sweep.jobs import jobs_of

    best: Any = OmegaConf.to_container(OmegaConf.load(folder / "optimization_results.yaml"))
    params = [f"{name}={value}" for name, value in best["best_params"].items()]
    places = [job.folder for job in jobs_of(folder) if set(params) <= set(job.overrides)]
    # A study that was begun by an earlier command may have its best trial elsewhere.
    where = f"in {folder / places[-1]}" if places else "of an earlier command of the study"
    return f"Best trial: {' '.join(params)} with {best['best_value']}, {where}."


def _swept(config: DictConfig) -> list[str]:
    """Return the names of the settings with several values."""
    params = config.hydra.sweeper.get("params") or {}
    lines = [*(f"{name}={value}" for name, value in params.items()), *config.hydra.overrides.task]
    overrides = OverridesParser.create().parse_overrides(lines)
    # The last override of a setting counts.
    last = {override.get_key_element().lstrip("+"): override for override in overrides}
    return [name for name, override in last.items() if override.is_sweep_override()]
