"""``head-gating compare FOLDERS``: finished runs in one table, with a recommendation and a figure."""

import argparse
import json
import sys
from pathlib import Path

from gating.commands.options import MAX_DROP
from gating.errors import FolderExistsError, InputError
from gating.report.tradeoff.table import as_plain
from gating.run.folder.contents import is_run
from gating.run.folder.state import is_finished
from gating.run.sweep.outcome import FORMATS, compare, print_choice, write_figure
from gating.run.sweep.records import jobs_of

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> None:
    """Print the table of some runs and the recommended one, and write the figure."""
    output = arguments.output
    if output is not None:
        _check_output(output, overwrite=arguments.overwrite)
    failed: list[tuple[str, str]] = []
    folders = list(dict.fromkeys(place for folder in arguments.folders for place in _runs_in(folder, failed)))
    tradeoff = compare(folders, max_drop=arguments.max_drop)
    if tradeoff.problem is not None:
        raise InputError(f"These runs cannot be compared: {tradeoff.problem}")
    if arguments.json:
        print(json.dumps(as_plain(tradeoff, setting=MAX_DROP) | {"failed": dict(failed)}, indent=2))
    else:
        print_choice(tradeoff, setting=MAX_DROP, failed=failed)
    if output is not None:
        write_figure(tradeoff, output)
        # The JSON is alone in the output.
        print(f"The picture is in {output}", file=sys.stderr if arguments.json else sys.stdout)


def _check_output(output: Path, *, overwrite: bool) -> None:
    """Check that the figure can be written to a file before the runs are read.

    Raises:
        FolderExistsError: There is a file already, and ``overwrite`` is false, or it is a folder.
        InputError: Its suffix names no format.
    """
    if output.suffix.lower() not in FORMATS:
        raise InputError(f"--output {output} names no picture: give a file that ends with {', '.join(FORMATS)}.")
    if output.exists() and not (overwrite and output.is_file()):
        raise FolderExistsError(f"{output} exists already. Choose another place, or pass --overwrite.")


def _runs_in(folder: Path, failed: list[tuple[str, str]]) -> list[Path]:
    """Return the folders of the finished runs of a sweep, or the folder of a run itself.

    Args:
        folder: The folder.
        failed: Jobs of the sweep that have no finished run, each with the reason; extended.

    Raises:
        InputError: The folder holds neither.
    """
    if is_run(folder):
        return [folder]
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder. Give folders of finished runs or of sweeps.")
    jobs = jobs_of(folder)
    failed += [(f"{folder / job.folder}", job.reason) for job in jobs if job.reason is not None]
    # Sweeps of earlier versions have no records of their jobs.
    places = [folder / job.folder for job in jobs] or sorted(path for path in folder.iterdir() if is_run(path))
    finished = [place for place in places if is_finished(place)]
    unfinished = [place for place in places if is_run(place) and not is_finished(place)]
    known = {name for name, _ in failed}
    failed += [(str(place), "not finished") for place in unfinished if str(place) not in known]
    if not finished:
        raise InputError(f"{folder} holds no finished run. Give folders of finished runs or of sweeps.")
    return finished
