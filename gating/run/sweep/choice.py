"""The end of a sweep or comparison: a table, a recommendation, a figure and a file with the numbers."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from gating.run.sweep.tradeoff.decision import Tradeoff
from gating.run.sweep.tradeoff.figure import tradeoff_figure
from gating.run.sweep.tradeoff.table import as_plain, explain_choice, failed_table, settings_lines, tradeoff_table
from gating.storage.atomic import replacing_file

__all__ = ["FORMATS", "is_figure", "print_choice", "write_figure", "write_numbers"]

# Suffixes of a figure, which name its format.
FORMATS = (".png", ".pdf", ".svg")
# The text is in the metadata of each figure, uncompressed in all formats.
_CREATOR = "head-gating"
_METADATA = re.compile(
    rb"\x89PNG.*tEXtCreator\0%(name)b|%%PDF.*/Creator \(%(name)b\)|"
    rb"<\?xml.*<dc:creator>\s*<cc:Agent>\s*<dc:title>%(name)b</dc:title>" % {b"name": _CREATOR.encode()},
    re.DOTALL,
)

# Least width of a table that is not printed to a terminal, and of its column of folders.
_WIDTH, _FOLDER = 120, 16


def print_choice(tradeoff: Tradeoff, *, setting: str, failed: Sequence[tuple[str, str]] = ()) -> None:
    """Print the table, the failed jobs, and the recommendation with the name of the setting for the accepted loss."""
    whole, least = _widths(tradeoff)
    # A file or pipe has no width; rich would take 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=max(_WIDTH, whole))
    fits = least <= console.width
    console.print(tradeoff_table(tradeoff, with_settings=fits))
    for line in [] if fits else settings_lines(tradeoff):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if failed:
        console.print(failed_table(failed))
    for sentence in explain_choice(tradeoff, setting=setting):
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def _widths(tradeoff: Tradeoff) -> tuple[int, int]:
    """Return the width of the table in which nothing is broken, and that in which only long folders are."""
    console = Console(width=10_000)
    whole = console.measure(tradeoff_table(tradeoff)).maximum
    longest = max(len(run.folder) for candidate in tradeoff.candidates for run in candidate.runs)
    return whole, whole - max(0, longest - _FOLDER)


def write_figure(tradeoff: Tradeoff, path: Path) -> None:
    """Write the figure to a file with one of the suffixes in ``FORMATS``."""
    with replacing_file(path) as new:
        figure = tradeoff_figure(tradeoff)
        figure.savefig(new, format=path.suffix.lower().removeprefix("."), dpi=120, metadata={"Creator": _CREATOR})


def is_figure(path: Path) -> bool:
    """Return whether a file is a figure of :func:`write_figure`, by its metadata."""
    return path.is_file() and _METADATA.match(path.read_bytes()) is not None


def write_numbers(tradeoff: Tradeoff, path: Path, *, setting: str, failed: Sequence[tuple[str, str]] = ()) -> None:
    """Write the numbers, and the failed jobs with their reasons, as JSON."""
    plain = as_plain(tradeoff, setting=setting) | {"failed": dict(failed)}
    with replacing_file(path) as new:
        new.write_text(json.dumps(plain, indent=2, allow_nan=False) + "\n", encoding="utf-8")
