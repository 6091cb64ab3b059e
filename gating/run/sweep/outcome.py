"""The end of a sweep or comparison: a table, a recommendation, a figure and a file with the numbers."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from gating.report.tradeoff.decision import Tradeoff, decide
from gating.report.tradeoff.figure import tradeoff_figure
from gating.report.tradeoff.table import as_plain, explain_choice, failed_table, tradeoff_table
from gating.run.sweep.results import read_comparison
from gating.storage.atomic import replacing_file

__all__ = ["compare", "print_choice", "write_figure", "write_numbers"]

# Columns of a table that is not printed to a terminal.
_WIDTH = 120


def compare(folders: list[Path], *, max_drop: float) -> Tradeoff:
    """Return the choice among the runs in some folders.

    Raises:
        InputError: A folder is not that of a finished run.
    """
    results, score, axis, notes, problem = read_comparison(folders)
    return decide(results, score, max_drop=max_drop, axis=axis, notes=notes, problem=problem)


def print_choice(tradeoff: Tradeoff, *, setting: str, failed: Sequence[tuple[str, str]] = ()) -> None:
    """Print the table and the recommendation.

    Args:
        tradeoff: The choice.
        setting: Name of the setting or option for the largest accepted loss.
        failed: The failed jobs, each with its reason.
    """
    # A file or pipe has no width; rich would take 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    console.print(tradeoff_table(tradeoff))
    if failed:
        console.print(failed_table(failed))
    for sentence in explain_choice(tradeoff, setting=setting):
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def write_figure(tradeoff: Tradeoff, path: Path) -> None:
    """Write the figure."""
    with replacing_file(path) as new:
        tradeoff_figure(tradeoff).savefig(new, format="png", dpi=120)


def write_numbers(tradeoff: Tradeoff, path: Path, *, setting: str, failed: Sequence[tuple[str, str]] = ()) -> None:
    """Write the numbers as JSON.

    Args:
        tradeoff: The choice.
        path: Path of the file.
        setting: Name of the setting or option for the largest accepted loss.
        failed: The failed jobs, each with its reason.
    """
    plain = as_plain(tradeoff, setting=setting) | {"failed": dict(failed)}
    with replacing_file(path) as new:
        new.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
