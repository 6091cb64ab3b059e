"""Recognition of GGUF files that this package has written, as they were written: only those are replaced."""

import hashlib
from pathlib import Path

import gguf

__all__ = ["add_seal", "is_sealed", "seal"]

# A string of metadata: the checksum of the whole file, with zeros in its own place.
_KEY = "head_gating.sha256"
_ZEROS = "0" * hashlib.sha256().digest_size * 2
# It is one of the first entries of the metadata, after which tokens may take megabytes.
_BEGINNING = 2**16
_CHUNK = 2**22


def add_seal(writer: gguf.GGUFWriter) -> None:
    """Add the place of the checksum to the metadata of a file, before any long entry."""
    writer.add_string(_KEY, _ZEROS)


def seal(file: Path) -> None:
    """Write the checksum of a file into its place."""
    found = _read(file)
    assert found is not None
    offset, _, computed = found
    with file.open("rb+") as opened:
        opened.seek(offset)
        opened.write(computed.encode())


def is_sealed(file: Path) -> bool:
    """Return whether a file was written by this package, and has not been changed since."""
    found = _read(file)
    return found is not None and found[1] == found[2]


def _read(file: Path) -> tuple[int, str, str] | None:
    """Return the place and the value of a file's checksum, and its value for the present content; None without one."""
    with file.open("rb") as opened:
        begin = opened.read(_BEGINNING)
        # The text follows the key, its type in 4 bytes and its length in 8.
        offset = begin.find(_KEY.encode()) + len(_KEY) + 4 + 8
        if not begin.startswith(b"GGUF") or _KEY.encode() not in begin or offset + len(_ZEROS) > len(begin):
            return None
        end = offset + len(_ZEROS)
        digest = hashlib.sha256(begin[:offset] + _ZEROS.encode() + begin[end:])
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
    return offset, begin[offset:end].decode(errors="replace"), digest.hexdigest()
