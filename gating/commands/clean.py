"""``head-gating clean RUNS``: free the disk space of the checkpoints of finished runs."""

import argparse
import sys
from pathlib import Path

from gating.commands.model_folder import runs_in
from gating.errors import InputError, explain
from gating.run.folder import free_space, is_run, megabytes


def run(arguments: argparse.Namespace) -> None:
    """Remove the checkpoints of finished runs, and print the freed space.

    Raises:
        InputError: A folder holds no run; nothing is removed.
        SystemExit: Another process trains a run, whose checkpoints stay; those of the others were removed.
    """
    places: list[Path] = []
    for folder in arguments.folders:
        found = [folder] if is_run(folder) else runs_in(folder)
        if not found:
            raise InputError(f"{folder} holds no run. Give folders of runs or of sweeps.")
        places += found
    total, is_refused = 0, False
    # A folder that is given twice, or by a link, is one.
    for place in {place.resolve(): place for place in places}.values():
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
