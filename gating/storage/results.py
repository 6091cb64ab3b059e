"""Recognition of folders that this package has written: only those are replaced, and only as they were written.

Each has a file ``head_gating.json`` with the checksums of all its files under ``sha256``, those of its own other
entries among them.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gating.errors import FolderExistsError
from gating.loader.checksums import CHECKSUMS, CONFIG, INDEX, WEIGHTS, digest_file, digest_table
from gating.storage.tables import read_table

__all__ = [
    "COMPACT_MODEL",
    "MODEL_FILES",
    "RECIPE",
    "RECIPE_FILES",
    "RECORD_FILE",
    "ResultKind",
    "check_result",
    "digest_record",
    "find_foreign",
    "write_manifest",
]

# The record of kept units in a stock folder, which has none in its configuration, is in the same file.
RECORD_FILE = "head_gating.json"
# Files of a recipe beside its configuration: its table, its tensors, and an adapter of PEFT.
RECIPE_FILES = ("recipe.json", "recipe.safetensors")
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
        recognizes: Function that returns whether a folder is such a result.
        in_command: Option or setting of the command line that allows overwriting.
    """

    name: str
    recognizes: Callable[[Path], bool]
    in_command: str


def write_manifest(folder: Path) -> None:
    """Add the checksums of all files of a folder to its ``head_gating.json``."""
    described = read_table(folder / RECORD_FILE)
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    sums = {name: digest_file(folder / name) for name in names if name != RECORD_FILE}
    described[CHECKSUMS] = {**sums, RECORD_FILE: digest_record(described)}
    (folder / RECORD_FILE).write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def digest_record(described: Mapping[str, Any]) -> str:
    """Return the checksum of the content of a ``head_gating.json`` without its checksums."""
    return digest_table({name: value for name, value in described.items() if name != CHECKSUMS})


def check_result(folder: Path, *, kind: ResultKind) -> None:
    """Check that a folder is an earlier result of a kind, as it was written.

    Raises:
        FileExistsError: The folder is not such a result, or holds a file that is not part of it or was changed.
    """
    sums = _checksums(folder)
    if not sums or not kind.recognizes(folder):
        raise FolderExistsError(
            f"{folder} is not the folder of an earlier {kind.name}, so it is not replaced. Choose another place."
        )
    name = find_foreign(folder)
    if name is None:
        return
    reason = (
        f"{name} in it has changed since this {kind.name} was written"
        if name in sums
        else f"it holds {name}, which does not belong to the {kind.name}"
    )
    raise FolderExistsError(f"{folder} is not replaced, because {reason}. Move that away, or choose another place.")


def find_foreign(folder: Path) -> str | None:
    """Return the name of an entry of a folder that is not as this package wrote it; any without checksums."""
    sums = _checksums(folder)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            if not any(known.startswith(f"{name}/") for known in sums):
                return name
        elif path.is_symlink() or not path.is_file() or _digest(path, name) != sums.get(name):
            return name
    return None


def _digest(path: Path, name: str) -> str:
    try:
        return digest_record(read_table(path)) if name == RECORD_FILE else digest_file(path)
    except (ValueError, RecursionError):
        return ""  # It was never written as JSON here.


def _checksums(folder: Path) -> dict[str, Any]:
    """Return the checksums of the files of a folder; an empty table if it has none."""
    sums = read_table(folder / RECORD_FILE).get(CHECKSUMS)
    return sums if isinstance(sums, dict) else {}


def _is_compact(folder: Path) -> bool:
    # The dense teacher of a run has no card.
    has_files = (folder / "README.md").is_file() and any((folder / name).is_file() for name in (WEIGHTS, INDEX))
    return has_files and "model_type" in read_table(folder / CONFIG)


COMPACT_MODEL = ResultKind("compact model", _is_compact, in_command="overwrite=true")
RECIPE = ResultKind("recipe", lambda folder: (folder / RECIPE_FILES[0]).is_file(), in_command="overwrite=true")
