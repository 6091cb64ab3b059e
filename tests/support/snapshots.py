"""The content of a folder, to compare it later."""

from pathlib import Path


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Return the content of each file below a folder by its path; None for a folder. Locks are left out."""
    paths = (path for path in folder.rglob("*") if path.name != ".lock")
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}
