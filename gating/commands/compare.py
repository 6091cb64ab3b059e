"""``head-gating compare FOLDERS``: finished runs in one table, with a recommendation and a picture."""

import argparse
import sys
from pathlib import Path

from gating.errors import InputError
from gating.run.sweep.choice import Choice, as_json, print_choice, write_picture
from gating.run.sweep.results import FinishedRun, read_runs


def run(arguments: argparse.Namespace) -> None:
    """Print the table of some runs and the recommended one, and write the picture."""
    output = arguments.output
    if output is not None and output.exists() and not arguments.overwrite:
        raise FileExistsError(f"{output} exists already. Choose another place, or pass --overwrite.")
    runs: dict[Path, FinishedRun] = {}
    failed: dict[str, str] = {}
    for folder in arguments.folders:
        found, others = read_runs(folder)
        if not found:
            raise InputError(f"{folder} holds no finished run. Give folders of finished runs or of sweeps.")
        # A folder that is given by several names counts once.
        runs |= {place: run for run in found if (place := Path(run.folder).resolve()) not in runs}
        failed |= others
    choice = Choice(list(runs.values()), max_drop=arguments.max_drop)
    if arguments.json:
        print(as_json(choice, failed=failed))
    else:
        print_choice(choice)
    # The JSON is alone in the output.
    for name, reason in failed.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    if output is not None:
        write_picture(choice, output)
        print(f"The picture is in {output}", file=sys.stderr)
