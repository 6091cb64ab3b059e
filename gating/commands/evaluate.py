"""``head-gating evaluate FOLDER``: the metrics, sizes and latency of a model on a data set."""

import argparse
import json
import sys
from contextlib import redirect_stdout

from gating.errors import MissingPackageError, missing_extra

__all__ = ["HELP", "add_arguments", "run"]

HELP = "evaluate a compact or dense model on a data set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("folder", help="folder of a model or a finished run, or the name of a model on the hub")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="NAME=VALUE",
        help="settings of data, task, trainer, latency and seed as in head-gating train, such as data=files "
        "data.test=test.tsv; by default those of the run that made the folder",
    )
    parser.add_argument("--split", choices=("validation", "test"), help="data to evaluate on; test if there is one")
    parser.add_argument("--json", action="store_true", help="print JSON alone")


def run(arguments: argparse.Namespace) -> None:
    """Evaluate a model, and print its metrics.

    Raises:
        InputError: The model, the data and the settings do not fit each other.
        MissingPackageError: A package of the extra ``train`` is missing.
    """
    try:
        # Other commands need neither Hydra nor Lightning.
        from gating.commands.folder_evaluation import evaluate_folder
    except ModuleNotFoundError as error:
        raise MissingPackageError(missing_extra("head-gating evaluate", missing=error.name)) from error
    # Other output, such as how data was divided, is not part of the JSON.
    with redirect_stdout(sys.stderr if arguments.json else sys.stdout):
        evaluated = evaluate_folder(arguments.folder, arguments.settings, split=arguments.split)
    print(json.dumps(evaluated.to_json(), indent=2) if arguments.json else evaluated.to_text())
