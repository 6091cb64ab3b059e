"""Digests of large data: evenly spread parts are compared."""

from pathlib import Path

import pytest
from datasets import Dataset

from gating.storage import identity


def test_of_a_large_file_or_column_spread_parts_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_BLOCK", 4)
    monkeypatch.setattr(identity, "_ROWS", 4)
    monkeypatch.setattr(identity, "_MOST_BYTES", 32)
    path, digests = tmp_path / "model.bin", []
    for content in (bytes(64), bytes(4) + b"1" + bytes(59), b"1" + bytes(63), bytes(68)):
        path.write_bytes(content)
        digests.append(identity.file_digest(path))
    # Every second block, and the size: the second content differs in a block between.
    assert digests[0] == digests[1]
    assert len({*digests}) == 3
    tables = [[0] * 32, [0] * 4 + [1] + [0] * 27, [1] + [0] * 31]
    columns = [identity.table_digests(Dataset.from_dict({"number": numbers}))["number"] for numbers in tables]
    assert columns[0] == columns[1] != columns[2]
