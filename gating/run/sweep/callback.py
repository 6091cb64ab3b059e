"""The callback of a sweep: its failed jobs and the choice among the others, at its end."""

import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from gating.errors import InputError, explain, is_input_error
from gating.run.folder import is_run
from gating.run.sweep.records import JOBS, NUMBERS, Job, is_sweep, jobs_of, own_overrides

__all__ = ["SweepReport", "ending_sweep"]

_FIGURE = "report/tradeoff.png"
# Optuna's sweeper writes this file.
_BEST = "optimization_results.yaml"
_FILES = (JOBS, _FIGURE, NUMBERS, _BEST)
_SETTING = "sweep.max_drop"


# The settings of a sweep of this process that has begun and not ended.
_begun: list[DictConfig] = []


@contextmanager
def ending_sweep() -> Iterator[None]:
    """Show the report of a sweep whose sweeper fails, after which Hydra calls no callback.

    Optuna's does if all trials fail.
    """
    try:
        yield
    except Exception:
        for config in _begun:
            with suppress(SystemExit):
                _show_end(_folder_of(config), config)
        raise
    finally:
        _begun.clear()


class SweepReport(Callback):
    """Shows the runs of a sweep and recommends one; lists its failed jobs, and exits with code 1 if there are any."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Take the folder of the sweep, and forget the jobs of an earlier one there.

        Raises:
            SystemExit: Another process has the folder, a file of the sweep would replace a file not written by a sweep
                or jobs that have begun, or a setting is wrong.
        """
        folder = _folder_of(config)
        # Hydra turns other errors of callbacks into warnings.
        _max_drop(config)
        # Each process does so, because Hydra writes the command in each.
        _check_own(folder)
        # Hydra makes this object for every command, and torch takes seconds to import.
        from gating.distributed.collectives import is_rank_zero
        from gating.run.sweep.jobs import begin_jobs, take_sweep

        if is_rank_zero():
            try:
                take_sweep(folder)
            except (InputError, OSError) as error:
                sys.exit(f"error: {explain(error)}")
            # Again: another sweep may have begun and ended here meanwhile.
            _check_own(folder)
            _check_repeated(folder, config)
            begin_jobs(folder, swept=_swept(config))
            _begun.append(config)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the choice among the finished jobs, then the failed ones.

        Raises:
            SystemExit: A job failed, or a part of the report.
        """
        from gating.distributed.collectives import is_rank_zero
        from gating.run.sweep.jobs import leave_sweep

        if is_rank_zero():
            _begun.clear()
            try:
                _show_end(_folder_of(config), config)
            finally:
                leave_sweep()


def _show_end(folder: Path, config: DictConfig) -> None:
    failed = list[tuple[str, str]]()
    is_whole = _attempt(lambda: _report(folder, failed, config))
    if failed:
        # The terminal may be gone.
        with suppress(OSError):
            print(f"error: {len(failed)} job(s) of the sweep failed:", file=sys.stderr)
            for name, reason in failed:
                print(f"  {name}: {reason}", file=sys.stderr)
    if failed or not is_whole:
        sys.exit(1)


def _attempt(action: Callable[[], bool | None]) -> bool:
    """Do a part of a report, which prevents no other part if it fails; return whether it was done."""
    try:
        return action() is not False
    except Exception as error:
        with suppress(OSError):
            if is_input_error(error):
                print(f"error: {explain(error)}", file=sys.stderr)
            else:
                traceback.print_exc()
        return False


def _report(folder: Path, failed: list[tuple[str, str]], config: DictConfig) -> bool:
    """Show and write the choice among the finished jobs of a sweep; return whether each part of it was done.

    Jobs that have failed, or whose results cannot be read, are added to ``failed``, each with the reason.
    """
    from gating.run.sweep.results import compare, why_no_result
    from gating.run.sweep.tradeoff.figure import write_figure
    from gating.run.sweep.tradeoff.table import print_choice, write_numbers

    jobs, finished = jobs_of(folder), list[Job]()
    # Functions that are called in place of a run may write none.
    has_runs = any(is_run(folder / job.folder) for job in jobs)
    for job in jobs:
        reason = job.reason
        if reason is None and has_runs:
            reason = why_no_result(folder / job.folder)
            finished += [job] if reason is None else []
        if reason is not None:
            failed.append((_shown(folder, job), reason))
    if not finished:
        return True
    search = _best_trial(folder, finished) if "optuna" in str(config.hydra.sweeper.get("_target_")) else None
    tradeoff = compare([folder / job.folder for job in finished], max_drop=_max_drop(config), search=search)
    parts = (
        lambda: print_choice(tradeoff, setting=_SETTING, failed=failed),
        lambda: write_numbers(tradeoff, folder / NUMBERS, setting=_SETTING, failed=failed),
        lambda: write_figure(tradeoff, folder / _FIGURE),
    )
    done = [_attempt(part) for part in parts]
    is_whole = all(done)
    if is_whole:
        print(f"The picture is in {folder / _FIGURE}, the numbers are in {folder / NUMBERS}")
    return is_whole


def _best_trial(folder: Path, jobs: Sequence[Job]) -> str | None:
    """Return a sentence on the best trials of Optuna's sweeper, which only logs them; None for other sweepers."""
    if not (folder / _BEST).is_file():
        return None
    best: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(folder / _BEST))  # type: ignore[assignment]
    single = {"params": best.get("best_params", {}), "values": [best.get("best_value")]}
    lines = []
    for trial in best.get("solutions") or [single]:
        params = [f"{name}={value}" for name, value in trial["params"].items()]
        places = [job.folder for job in jobs if set(params) <= set(job.overrides)]
        # A study that was begun by an earlier command has its best trial elsewhere.
        where = f", in {folder / places[-1]}" if places else ", of an earlier command of the study"
        lines.append(f"Best trial: {' '.join(params)} with {', '.join(map(str, trial['values']))}{where}.")
    return "\n".join(lines)


def _shown(folder: Path, job: Job) -> str:
    return f"job {job.number} ({' '.join(own_overrides(folder, job.overrides))})"


def _swept(config: DictConfig) -> list[str]:
    """Return the names of the settings with several values."""
    params = config.hydra.sweeper.get("params") or {}
    lines = [*(f"{name}={value}" for name, value in params.items()), *config.hydra.overrides.task]
    overrides = OverridesParser.create().parse_overrides(lines)
    # The last override of a setting counts.
    last = {override.get_key_element().lstrip("+"): override for override in overrides}
    return [name for name, override in last.items() if override.is_sweep_override()]


def _max_drop(config: DictConfig) -> float:
    value = OmegaConf.select(config, _SETTING)
    if type(value) not in (int, float) or not (math.isfinite(value) and value >= 0):
        sys.exit(f"error: {_SETTING}={value} cannot be used: input should be a number of at least 0.")
    return float(value)


def _check_own(folder: Path) -> None:
    command = folder / "multirun.yaml"
    # Optuna's sweeper writes no multirun.yaml.
    is_own = is_sweep(folder) or _names_this_callback(command)
    for path in (command, *(folder / name for name in _FILES)):
        if os.path.lexists(path) and (path.is_symlink() or not is_own):
            sys.exit(
                f"error: {path} was not written by a sweep, and this one would replace it. Choose another place with "
                "hydra.sweep.dir=FOLDER or output_dir=FOLDER."
            )


def _check_repeated(folder: Path, config: DictConfig) -> None:
    """Exit where jobs would be numbered as those of an earlier sweep, which have begun."""
    # The number of the job is not known yet.
    subdir: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    is_numbered = subdir["subdir"] == "${hydra.job.num}"
    if is_numbered and config.get("resume") is None and not config.get("overwrite"):
        begun = next((job for job in jobs_of(folder) if is_run(folder / job.folder)), None)
        if begun is not None:
            sys.exit(
                f"error: {folder} holds a sweep, with a run in {folder / begun.folder}. Go on with it by resume=auto, "
                "begin again with overwrite=true, or choose another output_dir."
            )


def _names_this_callback(path: Path) -> bool:
    with suppress(OSError, ValueError):
        return f"{__name__}.{SweepReport.__name__}" in path.read_text(encoding="utf-8")
    return False


def _folder_of(config: DictConfig) -> Path:
    return Path(str(config.hydra.sweep.dir))
