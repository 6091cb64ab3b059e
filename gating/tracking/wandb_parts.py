"""Parts of a W&B run, one folder for each process that logged to it, and their return to a checkpoint."""

import re
import struct
from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

from gating.tracking.contents import WANDB, WANDB_ID

__all__ = ["cut_off", "forget_run", "is_offline", "is_uploaded", "next_row", "parts_of", "remember_run", "run_in"]

# Name of the folder of a part. A second one of the same second has a number at its end.
_FOLDER = re.compile(r"(?:offline-)?run-(?P<time>\d{8}_\d{6})-(?P<id>\w+?)(?:-(?P<number>\d+))?")
# The file of a part is a log of LevelDB's format: a header, then blocks of chunks with headers of their own.
_FILE_HEADER, _BLOCK, _CHUNK_HEADER = 7, 2**15, 7
_FULL, _FIRST, _MIDDLE, _LAST = range(1, 5)


def remember_run(save_dir: Path, run_id: str) -> None:
    """Write the id of the W&B run of a run's folder, for :func:`run_in`."""
    (save_dir / WANDB_ID).write_text(run_id, encoding="utf-8")


def forget_run(save_dir: Path) -> None:
    """Remove the id of an earlier W&B run in a folder; its parts stay."""
    (save_dir / WANDB_ID).unlink(missing_ok=True)


def run_in(save_dir: Path) -> str | None:
    """Return the id of the W&B run of a run's folder; None without one."""
    try:
        return (save_dir / WANDB_ID).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def parts_of(save_dir: Path, run_id: str) -> list[Path]:
    """Return the folders of a W&B run in the folder of a run, the earliest first."""
    named = {path: _FOLDER.fullmatch(path.name) for path in (save_dir / WANDB).glob("*run-*") if not path.is_symlink()}
    order = {
        path: (name["time"], int(name["number"] or 0)) for path, name in named.items() if name and name["id"] == run_id
    }
    return sorted(order, key=order.__getitem__)


def is_offline(part: Path) -> bool:
    """Return whether a part was recorded without a server, so that `wandb sync` uploads it."""
    return part.name.startswith("offline-")


def is_uploaded(part: Path) -> bool:
    """Return whether the server has a part already: logged online, or marked by `wandb sync`."""
    return not is_offline(part) or any(part.glob("*.wandb.synced"))


def next_row(part: Path) -> int:
    """Return the number of the row after the last one of a part; 0 for a part without rows."""
    rows = [record.history.step.num for _, record in _records(_file(part)) if _kind(record) == "history"]
    return max(rows, default=-1) + 1


def cut_off(part: Path, *, rows: int) -> None:
    """Truncate the file of a part before the row with the number ``rows``, if it has that row."""
    path = _file(part)
    before: int | None = None
    for start, record in _records(path):
        if _kind(record) == "history" and record.history.step.num >= rows:
            with path.open("r+b") as file:
                # The summary of a row is written before the row.
                file.truncate(start if before is None else before)
            return
        before = start if _kind(record) == "summary" else None


def _file(part: Path) -> Path:
    return next(iter(sorted(part.glob("run-*.wandb"))), part / "missing.wandb")


def _kind(record: Record) -> str | None:
    kind: str | None = record.WhichOneof("record_type")
    return kind


def _records(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield the place and the content of each whole record of a file; the last one of a killed process may not be."""
    data = path.read_bytes() if path.is_file() else b""
    at, start, content = _FILE_HEADER, 0, b""
    while at + _CHUNK_HEADER <= len(data):
        room = _BLOCK - at % _BLOCK
        if room < _CHUNK_HEADER:
            at += room
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        end = at + _CHUNK_HEADER + length
        if not _FULL <= kind <= _LAST or end > len(data):
            return
        if kind in (_FULL, _FIRST):
            start, content = at, b""
        content += data[at + _CHUNK_HEADER : end]
        at = end
        if kind in (_FULL, _LAST):
            yield start, Record.FromString(content)
