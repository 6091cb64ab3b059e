"""The command line: ``head-gating train`` and the commands of ``gating.commands``; also as ``python -m gating``."""

import argparse
import importlib
import importlib.util
import runpy
import sys
from pathlib import Path

import gating
from gating.commands.options import COMMANDS
from gating.distributed import limit_spinning
from gating.errors import UserError, explain
from gating.tracking.redaction import redact_output
from gating.training.signals import stop_on_signals


def main() -> None:
    """Run a command of this package."""
    limit_spinning()
    if sys.argv[1:2] == ["train"]:
        # Hydra parses the other arguments.
        sys.argv = ["head-gating train", *sys.argv[2:]]
        runpy.run_path(str(_train_script()), run_name="__main__")
        return
    parser = _parser()
    arguments, more = parser.parse_known_args()
    # argparse ends the list of settings at the first option.
    if more and hasattr(arguments, "settings") and all("=" in one and one[0] != "-" for one in more):
        arguments.settings, more = [*arguments.settings, *more], []
    if more:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    redact_output()
    try:
        # Temporary folders are removed at a signal, too.
        with stop_on_signals():
            # Its module imports torch.
            importlib.import_module(f"gating.commands.{arguments.command}").run(arguments)
    except ModuleNotFoundError as error:
        if (error.name or "gating").startswith("gating"):
            raise
        sys.exit(f"error: {error.name} is missing: pip install 'head-gating[train]'")
    except (UserError, OSError) as error:
        sys.exit(f"error: {explain(error)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="head-gating", description="Remove attention heads and feed-forward neurons that are not needed."
    )
    parser.add_argument("--version", action="version", version=f"head-gating {gating.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train", help="fine-tune with gates, remove heads, export: head-gating train --help")
    for name, (purpose, add_arguments) in COMMANDS.items():
        described = f"{purpose[0].upper()}{purpose[1:]}."
        add_arguments(commands.add_parser(name, help=purpose, description=described))
    return parser


def _train_script() -> Path:
    """Return the path of train.py: inside the package in a wheel, beside it in a checkout."""
    here = Path(__file__).resolve().parent
    return here / "train.py" if importlib.util.find_spec("gating.train") else here.parent / "train.py"


if __name__ == "__main__":
    main()
