"""``head-gating compare FOLDERS``: finished runs in one table, with a recommendation and a figure."""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from gating.commands.options import MAX_DROP
from gating.errors import FolderExistsError, InputError
from gating.run.folder import is_finished, is_run
from gating.run.folder.contents import COMPACT
from gating.run.sweep.records import jobs_of
from gating.run.sweep.results import compare, why_no_result
from gating.run.sweep.tradeoff.figure import FORMATS, is_figure, write_figure
from gating.run.sweep.tradeoff.table import as_plain, print_choice

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> None:
    """Print the table of some runs and the recommended one, and write the figure."""
    output = arguments.output
    if output is not None:
        _check_output(output, overwrite=arguments.overwrite)
    failed: list[tuple[str, str]] = []
    places = [place for folder in arguments.folders for place in _runs_in(folder, failed)]
    folders, notes = _each_once(places)
    if not folders:
        raise InputError(f"No run can be compared: {'; '.join(f'{name}: {reason}' for name, reason in failed)}")
    tradeoff = compare(folders, max_drop=arguments.max_drop, notes=notes)
    if tradeoff.problem is not None:
        raise InputError(f"These runs cannot be compared: {tradeoff.problem}")
    if arguments.json:
        plain = as_plain(tradeoff, setting=MAX_DROP, failed=failed)
        print(json.dumps(plain, indent=2, allow_nan=False))
    else:
        print_choice(tradeoff, setting=MAX_DROP, failed=failed)
    if output is not None:
        write_figure(tradeoff, output)
        # The JSON is alone in the output.
        print(f"The picture is in {output}", file=sys.stderr if arguments.json else sys.stdout)


def _each_once(places: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Return folders without those that are another one by another name, and sentences on these."""
    names: dict[Path, dict[Path, int]] = {}
    for place in places:
        given = names.setdefault(place.resolve(), {})
        given[place] = given.get(place, 0) + 1
    notes = [
        f"{next(iter(given))} is given {sum(given.values())} times{_aliases(given)} and counts once."
        for given in names.values()
        if sum(given.values()) > 1
    ]
    return [next(iter(given)) for given in names.values()], notes


def _aliases(given: Iterable[Path]) -> str:
    """Return the other names of a folder in brackets, after a space."""
    others = [str(place) for place in given][1:]
    return f" (also as {', '.join(others)})" if others else ""


def _check_output(output: Path, *, overwrite: bool) -> None:
    """Check the suffix of a figure, and that it replaces only one of this command, before the runs are read."""
    if output.suffix.lower() not in FORMATS:
        raise InputError(f"--output {output} names no picture: give a file that ends with {', '.join(FORMATS)}.")
    if output.exists() and not (overwrite and output.is_file()):
        raise FolderExistsError(f"{output} exists already. Choose another place, or pass --overwrite.")
    if output.exists() and not is_figure(output):
        raise FolderExistsError(f"{output} is no figure of this command, so it is not replaced. Choose another place.")


def _runs_in(folder: Path, failed: list[tuple[str, str]]) -> list[Path]:
    """Return the folders of the finished runs of a sweep, or the folder of a run itself.

    Jobs of the sweep without a finished run are added to ``failed``, each with the reason.
    """
    if is_run(folder):
        return [folder]
    place = folder.resolve()
    if place.name == COMPACT and is_run(place.parent):
        return [place.parent]
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder. Give folders of finished runs or of sweeps.")
    jobs = jobs_of(folder)
    failed += [(f"{folder / job.folder}", job.reason) for job in jobs if job.reason is not None]
    # A folder of a failed job may have a run of an earlier sweep. A folder of runs need not be that of a sweep.
    places = [folder / job.folder for job in jobs if job.reason is None]
    places = places if jobs else sorted(path for path in folder.iterdir() if is_run(path))
    reasons = {place: why_no_result(place) for place in places}
    failed += [(str(place), reason) for place, reason in reasons.items() if reason]
    if not any(is_finished(place) for place in places):
        raise InputError(f"{folder} holds no finished run. Give folders of finished runs or of sweeps.")
    return [place for place, reason in reasons.items() if reason is None]
