"""The command line: ``head-gating train`` and the commands of ``gating.commands``; also as ``python -m gating``."""

import argparse
import importlib
import importlib.util
import runpy
import sys
from pathlib import Path

from gating.errors import UserError, explain
from gating.tracking.redaction import redact_output

__all__ = ["main"]

# Modules of gating.commands.
_COMMANDS = ("inspect", "evaluate", "export")


def main() -> None:
    """Run a command of this package."""
    if sys.argv[1:2] == ["train"]:
        # Hydra parses the other arguments.
        sys.argv = ["head-gating train", *sys.argv[2:]]
        runpy.run_path(str(_train_script()), run_name="__main__")
        return
    arguments = _parser().parse_args()
    redact_output()
    try:
        arguments.run(arguments)
    except (UserError, OSError) as error:
        sys.exit(f"error: {explain(error)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="head-gating", description="Remove attention heads and feed-forward neurons that are not needed."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train", help="fine-tune with gates, remove heads, export: head-gating train --help")
    for name in _COMMANDS:
        module = importlib.import_module(f"gating.commands.{name}")
        command = commands.add_parser(name, help=module.HELP, description=f"{module.HELP[0].upper()}{module.HELP[1:]}.")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def _train_script() -> Path:
    """Return the path of train.py: inside the package in a wheel, beside it in a checkout."""
    here = Path(__file__).resolve().parent
    return here / "train.py" if importlib.util.find_spec("gating.train") else here.parent / "train.py"


if __name__ == "__main__":
    main()
