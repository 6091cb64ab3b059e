"""The command line: ``head-gating train``."""

import importlib.util
import runpy
import sys
from pathlib import Path

_USAGE = """usage: head-gating train [SETTING=VALUE ...]    fine-tune, remove heads, export
       head-gating train --help               the settings
"""


def main() -> None:
    """Run a command of this package."""
    command, *arguments = sys.argv[1:] or [""]
    if command != "train":
        print(_USAGE, end="")
        sys.exit(0 if command in ("-h", "--help") else 2)
    sys.argv = ["head-gating train", *arguments]
    runpy.run_path(str(_train_script()), run_name="__main__")


def _train_script() -> Path:
    """Return train.py: in a wheel it lies inside the package, in a checkout beside it."""
    here = Path(__file__).resolve().parent
    return here / "train.py" if importlib.util.find_spec("gating.train") else here.parent / "train.py"


if __name__ == "__main__":
    main()
