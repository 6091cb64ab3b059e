"""Checksums of the files of a compact folder, in the record of its configuration.

The record in ``config.json`` has under ``sha256`` a checksum of each file of weights, of the generation settings, and
of the configuration itself without its checksums. They reveal damage and mix-ups, not forgery. A loaded model has
none; saving it writes new ones. Nothing here imports torch, which takes seconds.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["changed_file", "digest_file", "digest_table"]

RECORD_KEY, CHECKSUMS, CANARY = "head_gating", "sha256", "canary"
CONFIG, GENERATION = "config.json", "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PLAIN_LOADING = "transformers_weights"  # With this setting, a plain class refuses to load the weights.


def changed_file(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Return the name of the first file of a folder that differs from the checksums in its configuration, or None."""
    sums: dict[str, str] = config[RECORD_KEY].get(CHECKSUMS) or {}
    # transformers prefers one file of weights to several, so that a new one would replace the saved ones.
    present = {name for name in (CONFIG, WEIGHTS, INDEX, GENERATION) if (folder / name).exists()}
    changed = (name for name in sorted({*sums, *present}) if sums.get(name) != digest_file(folder / name))
    return next(changed, None) if sums else None


def digest_file(path: Path) -> str:
    """Return the checksum of a file; that of JSON does not depend on its layout, which git changes on some systems."""
    if path.suffix == ".json":
        return digest_table(json.loads(path.read_text(encoding="utf-8")))
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()


def digest_table(table: Any) -> str:
    """Return the checksum of the content of a JSON file, without the checksums in a record."""
    record = table.get(RECORD_KEY) if isinstance(table, dict) else None
    table = {**table, RECORD_KEY: {**record, CHECKSUMS: None}} if isinstance(record, dict) else table
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
