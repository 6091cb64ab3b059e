"""Record of the files that a program has written in a folder, kept there: no others are removed later."""

from pathlib import Path

from gating.storage.files import write_atomically

__all__ = ["WRITTEN", "note_written", "written_in"]

# One name on each line, relative to the folder. It is written before the file that it names.
WRITTEN = ".written"


def note_written(folder: Path, *names: str, anew: bool = False) -> None:
    """Add names to the record of a folder, before the files are written; anew, the earlier names are forgotten."""
    known = frozenset() if anew else written_in(folder) or frozenset()
    if anew or not known.issuperset(names):
        write_atomically(folder / WRITTEN, "".join(f"{name}\n" for name in sorted(known.union(names))))


def written_in(folder: Path) -> frozenset[str] | None:
    """Return the names in the record of a folder; None if it has no record that can be read.

    A folder may come from somebody else: only names that are known otherwise, too, are to be removed.
    """
    # Others, such as a pipe, could be read without end.
    if not (folder / WRITTEN).is_file():
        return None
    try:
        return frozenset((folder / WRITTEN).read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return None
