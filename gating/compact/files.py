"""The files of a model folder, read without trust in them, and their checksums.

No links out of the folder are followed, and no pipes and pickles are opened. Checksums of all files are in
``head_gating.json``, and those of a compact model in ``config.json``, which are written anew when it is saved again.
They reveal damage, mix-ups and changes, not forgery. The model card may change, and notes of the packages that save a
tokenizer or modules of sentence-transformers.
"""

import hashlib
import json
import os
import re
import stat
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gating.errors import DamageError, InputError, InputTypeError, loading
from gating.loader.modeling import CHECKSUMS, CONFIG, GENERATION, INDEX, RECORD_KEY, WEIGHTS, digest_file, digest_table
from gating.storage.files import read_table
from gating.storage.hub import RECORD_FILE, download, invalid_name, snapshot_of

_MAX_JSON_BYTES = 2**26
# A difference in these files changes the model; transformers takes one file of weights before several.
_OF_MODEL = re.compile(r"(config|generation_config|recipe)\.json|[\w.-]+\.safetensors(\.index\.json)?")
# The card, and code, which only trust_remote_code runs; the checksums themselves are compared when they are read.
_FREE = re.compile(rf".*\.(md|py)|{re.escape(RECORD_FILE)}")
# Files of a tokenizer that others wrote, and that are read beside the saved ones.
_OVERRIDES = {"added_tokens.json", "special_tokens_map.json", "chat_template.jinja"}
# Entries in settings of tokenizers and modules that change by their use, or if they are loaded and saved again.
_NOTES = {"truncation", "padding", "is_local", "local_files_only", "__version__"}


def find_folder(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    is_base: bool = False,
) -> Path:
    """Return the folder of a model, which is downloaded if it is named ``user/name`` and no folder has this name.

    Arguments and errors are those of :func:`gating.load_compact`; the name of the base of a recipe may lack the user.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise InputTypeError(f"Give the path of a folder, or a name on the hub, not a {type(name_or_path).__name__}.")
    folder, name = Path(name_or_path), str(name_or_path)
    is_name = isinstance(name_or_path, str) and ("/" in name or is_base) and invalid_name(name) is None
    if folder.exists() or not is_name:
        return folder
    try:
        return download(name, revision=revision, token=token, cache_dir=cache_dir)
    except (FileNotFoundError, ConnectionError) as error:
        what = "base model" if is_base else "compact model in"
        message = f"There is no {what} {name}: {name} does not exist here, and {error}"
        raise type(error)(message) from error.__cause__


def check_file(folder: Path, name: str) -> Path:
    """Return the path of a file of a folder; reading a pipe or device, which is refused, may never end."""
    path = folder / name
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    home, place = folder.resolve(), path.resolve()
    # The hub's cache keeps the files of a repository beside its snapshots.
    snapshots = [parent for parent in home.parents if parent.name == "snapshots"]
    if not any(place.is_relative_to(one) for one in (home, *(one.parent / "blobs" for one in snapshots[:1]))):
        raise InputError(f"{path} is a link out of the folder, to {place}; put the file itself there.")
    if not stat.S_ISREG(place.stat().st_mode):
        raise InputError(f"{path} is not a file.")
    return path


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's ``config.json``."""
    for path in (folder, folder / CONFIG):
        if not path.exists():
            raise FileNotFoundError(f"There is no model in {folder}: {path} does not exist.")
    return read_json(folder, CONFIG)


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Return the content of a JSON file of a folder; the errors are those of :func:`read_config`."""
    path = check_file(folder, name)
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise InputError(f"{path} is too large to be a {name}: {path.stat().st_size:,} bytes.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged_file(path, str(error).rstrip(".")) from error
    if not isinstance(found, dict):
        raise damaged_file(path, "it is not a table")
    return found


def weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers would load the weights from, in the safetensors format alone."""
    if os.path.lexists(folder / WEIGHTS):
        return [check_file(folder, WEIGHTS)]
    if not os.path.lexists(folder / INDEX):
        raise FileNotFoundError(
            f"There are no weights in {folder}: {WEIGHTS} does not exist. Pickles are not read. In place of an export "
            "to another runtime, give the model that it was made from, such as RUN/compact."
        )
    places = read_json(folder, INDEX).get("weight_map")
    names = set(places.values()) if isinstance(places, dict) else set()
    if not names or not all(isinstance(name, str) and name.endswith(".safetensors") for name in names):
        raise damaged_file(folder / INDEX, "it has no table weight_map with safetensors files")
    return [check_file(folder, name) for name in sorted(names)]


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Open a file of tensors, in a ``with`` block; raise ``ValueError`` if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, OverflowError) as error:
        raise damaged_file(path, str(error).rstrip(".")) from error


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in the weights of a folder, by name, from the headers of the files."""
    found: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        with open_tensors(path) as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return found


def walk(table: object, *, within: str = "") -> Iterator[tuple[str, object]]:
    """Yield each entry of a nested table, tables included, with its dotted name.

    Example:
        >>> dict(walk({"a": [1, {"b": 2}]}))
        {'a': [1, {'b': 2}], 'a.0': 1, 'a.1': {'b': 2}, 'a.1.b': 2}
    """
    inside = table.items() if isinstance(table, dict) else enumerate(table) if isinstance(table, list) else ()
    for key, value in inside:
        yield f"{within}{key}", value
        yield from walk(value, within=f"{within}{key}.")


def damaged_file(path: Path, reason: str) -> DamageError:
    """Return the error about a file that cannot be used."""
    return DamageError(f"{path} is damaged: {reason}. Export the model again.")


def write_manifest(folder: Path) -> None:
    """Add the checksums of all files of a folder to its ``head_gating.json``."""
    described = read_table(folder / RECORD_FILE)
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    sums = {name: _digest_saved(folder / name, name) for name in names if name != RECORD_FILE}
    described[CHECKSUMS] = {**sums, RECORD_FILE: _digest_record(described)}
    (folder / RECORD_FILE).write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _digest_saved(path: Path, name: str) -> str:
    """Return the checksum of a file, of settings of a tokenizer or module without notes."""
    if name.endswith(".json") and not _OF_MODEL.fullmatch(name) and (table := read_table(path)):
        return digest_table({key: value for key, value in table.items() if key not in _NOTES})
    return digest_file(path)


def _digest_record(described: Mapping[str, Any]) -> str:
    return digest_table({name: value for name, value in described.items() if name != CHECKSUMS})


def read_record(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's ``head_gating.json``; an empty table if there is none."""
    if not os.path.lexists(folder / RECORD_FILE):
        return {}
    described = read_json(folder, RECORD_FILE)
    sums = described.get(CHECKSUMS, {})
    if not isinstance(sums, dict):
        raise damaged_file(folder / RECORD_FILE, f"{CHECKSUMS} is not a table")
    if CHECKSUMS in described and sums.get(RECORD_FILE) != _digest_record(described):
        raise _changed(folder / RECORD_FILE, RECORD_FILE)
    return described


def check_manifest(folder: Path, described: Mapping[str, Any] | None = None) -> None:
    """Compare the files of a folder with the checksums beside them, and in its configuration, ``described``.

    Warns if a folder that this package saved has none of the model; recipes are compared by their own digests.
    """
    record, beside = (described or {}).get(RECORD_KEY), read_record(folder).get(CHECKSUMS)
    place, own = (RECORD_FILE, beside) if record is None else (CONFIG, record.get(CHECKSUMS))
    if own is None and (record is not None or os.path.lexists(folder / RECORD_FILE)):
        warnings.warn(
            f"{folder} has no checksums in a {place}, so damage to the files of this model is not noticed.",
            stacklevel=2,
        )
    sums = {name: one for name, one in (own or {}).items() if _OF_MODEL.fullmatch(name)}
    others = {
        name: one for name, one in (beside or {}).items() if not (_OF_MODEL.fullmatch(name) or _FREE.fullmatch(name))
    }
    # New files that are read before or beside the saved ones; a model that was saved alone may get a tokenizer.
    added = {CONFIG, WEIGHTS, INDEX, GENERATION} if own is not None else set()
    # Modules of sentence-transformers are not downloaded, and uploads replace no tokenizer.
    if snapshot_of(str(folder)):
        others = {name: one for name, one in others.items() if os.path.lexists(folder / name)}
    elif others:
        added |= _OVERRIDES
    for name in sorted({*sums, *others, *(name for name in added if os.path.lexists(folder / name))}):
        path, saved = folder / name, (sums | others).get(name)
        with loading(str(path), remedy="Export the model again."):
            # Earlier folders have checksums of whole files for settings, too.
            is_same = os.path.lexists(path) and (
                _digest_saved(check_file(folder, name), name) == saved or digest_file(path) == saved
            )
        if not is_same:
            raise _changed(path, place if _OF_MODEL.fullmatch(name) else RECORD_FILE)


def _changed(path: Path, place: str) -> InputError | FileNotFoundError:
    """Return the error about a file that is missing, or differs from the checksum in the file ``place``."""
    remedy = f", or, if the change is meant, delete {RECORD_FILE}" if place == RECORD_FILE else ""
    text = f"{path} is not what was saved with this model, by {place}. Export it again, or pass verify=False{remedy}."
    return InputError(text) if os.path.lexists(path) else FileNotFoundError(text)


def digest_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 checksum of tensors in the order in which they are given: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name}\n{tensor.dtype}\n{list(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(values.numpy().data)
    return digest.hexdigest()


def digest_stored(folder: Path) -> str:
    """Return the checksum of the weights in a folder, of all its safetensors files together."""
    with ExitStack() as stack:
        files = [stack.enter_context(open_tensors(path)) for path in weight_files(folder)]
        places = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        return digest_tensors((name, places[name].get_tensor(name)) for name in sorted(places))
