"""Examine some model types in one process; one JSON line is printed for each: ``worker FOLDER TYPE [TYPE ...]``."""

import json
import sys
import warnings
from pathlib import Path

import torch
import transformers

from benchmarks.census.case import examine

__all__ = ["main"]


def main() -> None:
    """Print the result of each model type of the command line."""
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    parent, *names = sys.argv[1:]
    for name in names:
        folder = Path(parent, name)
        folder.mkdir()
        print("EXAMINED", json.dumps(examine(name, folder)), flush=True)


if __name__ == "__main__":
    main()
