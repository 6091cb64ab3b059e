"""Recognition of folders that this package has written: only those are replaced."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from gating.errors import FolderExistsError
from gating.structure.record import RECORD_KEY

__all__ = [
    "COMPACT_MODEL",
    "MODEL_FILES",
    "RECORD_FILE",
    "ResultKind",
    "check_result",
    "find_foreign",
    "finite_number",
    "read_table",
]

_CODE = "compact.py"
# The record of kept units in a stock folder, which has none in its configuration.
RECORD_FILE = "head_gating.json"
# File names of the models, tokenizers and processors of transformers, as patterns of fnmatch.
MODEL_FILES = (
    *("config.json", "generation_config.json"),
    *("model.safetensors", "model.safetensors.index.json", "model-[0-9]*-of-[0-9]*.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    *("audio_tokenizer_config.json", "vocab.txt", "vocab.json", "vocab-src.json", "vocab-tgt.json"),
    *("entity_vocab.json", "target_vocab.json", "merges.txt", "bpe.codes", "dict.txt", "source.spm", "target.spm"),
    *("spiece.model", "spm.model", "spm_char.model", "sentencepiece.model", "sentencepiece.bpe.model"),
    *("tokenizer.model", "prophetnet.tokenizer", "normalizer.json", "word_shape.json", "word_pronunciation.json"),
    *("emoji.json", "byte_maps.json"),
)


@dataclass(frozen=True)
class ResultKind:
    """A kind of folders that this package writes.

    Attributes:
        name: Name for messages.
        own_files: Function that returns the names of a folder's files beyond those of any model; None if the folder is
            not such a result.
        in_command: Option or setting of the command line that allows overwriting.
    """

    name: str
    own_files: Callable[[Path], frozenset[str] | None]
    in_command: str


def check_result(folder: Path, *, kind: ResultKind) -> None:
    """Check that a folder is an earlier result of a kind and holds no other file.

    Args:
        folder: Folder to replace.
        kind: Kind of the result that replaces it.

    Raises:
        FileExistsError: The folder is not such a result, or holds a file that is not part of it.
    """
    own = kind.own_files(folder)
    if own is None:
        raise FolderExistsError(
            f"{folder} is not the folder of an earlier {kind.name}, so it is not replaced. Choose another place."
        )
    foreign = find_foreign(folder, own=own)
    if foreign is not None:
        raise FolderExistsError(
            f"{folder} is not replaced, because it holds {foreign}, which does not belong to the {kind.name}. Move "
            "that away, or choose another place."
        )


def find_foreign(folder: Path, *, own: frozenset[str] = frozenset()) -> str | None:
    """Return the name of an entry of a folder that is no file of a model, tokenizer or processor, if there is one.

    Args:
        folder: Folder to search.
        own: Names of further files that belong to the folder.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (_is_template_folder(path, name) or (path.is_file() and _is_own(name, own))):
            return name
    return None


def _is_template_folder(path: Path, name: str) -> bool:
    return name == "additional_chat_templates" and path.is_dir()


def _is_own(name: str, own: frozenset[str]) -> bool:
    return name in own or any(fnmatchcase(name, pattern) for pattern in MODEL_FILES)


def _compact_files(folder: Path) -> frozenset[str] | None:
    config = read_table(folder / "config.json")
    record = config.get(RECORD_KEY)
    if "model_type" in config and record is None:
        if isinstance(read_table(folder / RECORD_FILE).get(RECORD_KEY), dict):
            return frozenset({"README.md", RECORD_FILE})
        return frozenset({"README.md"}) if _is_own_card(folder / "README.md") else None
    if not (isinstance(record, dict) and isinstance(record.get("blocks"), dict)):
        return None
    return frozenset({"README.md", _CODE, *_imported_files(folder / _CODE)})


def _is_own_card(card: Path) -> bool:
    """Return whether a model card has the tag of this package, the sign of earlier stock models."""
    try:
        text = card.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return bool(re.match(r"---\n(?:(?!---).*\n)*- head-gating\n", text))


def _imported_files(code: Path) -> set[str]:
    """Return the names of the files that a compact model's code imports; they differ between versions."""
    try:
        return {Path(name).name for name in get_relative_import_files(code)}
    except OSError:
        return set()


def read_table(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; an empty table if the file cannot be read or has no table."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def finite_number(value: object) -> float | None:
    """Return a value of a JSON file if it is a finite number, whole ones as they are; None otherwise.

    >>> finite_number(18), finite_number(True), finite_number("18"), finite_number(10**400)
    (18, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # A whole number beyond floats.
        return None


COMPACT_MODEL = ResultKind("compact model", _compact_files, in_command="overwrite=true")
