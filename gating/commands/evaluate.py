"""``head-gating evaluate FOLDER``: the metrics, sizes and latency of a model on a data set."""

import argparse
import json
import sys
from contextlib import redirect_stdout

from gating.commands.folder_evaluation import evaluate_folder

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> None:
    """Evaluate a model, and print its metrics.

    Raises:
        InputError: The model, the data and the settings do not fit each other.
    """
    # Other output, such as how data was divided, is not part of the JSON.
    with redirect_stdout(sys.stderr if arguments.json else sys.stdout):
        evaluated = evaluate_folder(arguments.folder, arguments.settings, split=arguments.split)
    print(json.dumps(evaluated.to_json(), indent=2) if arguments.json else evaluated.to_text())
