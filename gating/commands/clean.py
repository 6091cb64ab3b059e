"""``head-gating clean RUNS``: free the disk space of the checkpoints of finished runs."""

import argparse
import sys
from pathlib import Path

from gating.errors import InputError, explain
from gating.run.folder import free_space, is_run, megabytes
from gating.run.sweep.jobs import jobs_of
from gating.storage.files import is_locked

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> None:
    """Remove the recorded checkpoints of finished runs, and print the freed space.

    Raises:
        InputError: A folder holds no run, or a sweep runs there; nothing is removed.
        SystemExit: Another process trains a run, whose checkpoints stay; those of the others were removed.
    """
    # A folder that is given twice, or by a link, is one.
    runs = {place.resolve(): place for folder in arguments.folders for place in _runs_in(folder)}
    total, is_refused = 0, False
    for place in runs.values():
        try:
            freed, sentence = free_space(place, dry_run=arguments.dry_run)
            print(sentence)
            total += freed
        except (InputError, OSError) as error:
            print(f"error: {explain(error)}", file=sys.stderr)
            is_refused = True
    print(f"{'Would free' if arguments.dry_run else 'Freed'} {megabytes(total)}.")
    if is_refused:
        sys.exit(1)


def _runs_in(folder: Path) -> list[Path]:
    """Return a run's folder, or the folders of the runs of a sweep that has ended, or of any folder of runs."""
    if is_run(folder):
        return [folder]
    if is_locked(folder):
        raise InputError(f"Another process runs the sweep in {folder}. Wait for its end.")
    places = [folder / job.folder for job in jobs_of(folder)] or sorted(folder.glob("*"))
    # The records of a sweep may come from somebody else.
    found = [place for place in places if is_run(place) and place.resolve().is_relative_to(folder.resolve())]
    if not found:
        raise InputError(f"{folder} holds no run. Give folders of runs or of sweeps.")
    return found
