"""Rows of W&B runs as wandb's own reader prints them."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WANDB = str(Path(sys.executable).parent / "wandb")


def records_of(part: Path) -> list[dict[str, Any]]:
    """Return the records of one part of a run."""
    text = subprocess.check_output([WANDB, "leet", "inspect", "--json", str(part)], text=True)
    return [json.loads(line) for line in text.splitlines()]


def rows_of(parts: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the rows of all parts of a finished run, in their order."""
    # The file may be complete a moment after the run is finished.
    for _ in range(100):
        records = [records_of(part) for part in parts]
        if any(record["type"] == "exit" for record in records[-1]):
            return [record["history"]["item"] for part in records for record in part if record["type"] == "history"]
        time.sleep(0.1)
    raise AssertionError("the run has no end")
