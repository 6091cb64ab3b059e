"""Names on the hub in place of the folder of a compact model, and the model card of ``push_to_hub``."""

import os
from pathlib import Path

from huggingface_hub import HfApi
from transformers import PreTrainedModel

from gating.errors import MissingFileError, UnreachableError
from gating.loader.saving import SavedMixin
from gating.report.card import write_card
from gating.storage.hub import download, invalid_name

__all__ = ["find_folder"]


def find_folder(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Return the folder of a model, which is downloaded if it is named ``user/name`` and no folder has this name.

    Args:
        name_or_path: Folder, or name on the hub. Only a string of the form ``user/name`` is looked up there.
        revision: Branch, tag or commit on the hub.
        token: Token of the hub; by default the one of the login.
        cache_dir: Folder of the hub's cache; by default that of huggingface_hub.

    Raises:
        FileNotFoundError: Neither a folder nor a model on the hub has this name, or the model lacks the revision.
        ConnectionError: The hub cannot be reached or refuses access.
    """
    folder, name = Path(name_or_path), str(name_or_path)
    is_full_name = isinstance(name_or_path, str) and "/" in name and invalid_name(name) is None
    if folder.exists() or not is_full_name:
        return folder
    try:
        return download(name, revision=revision, token=token, cache_dir=cache_dir)
    except (MissingFileError, UnreachableError) as error:
        message = f"There is no compact model in {name}: {name} does not exist here, and {error}"
        raise type(error)(message) from error.__cause__


def _write_uploaded_card(model: PreTrainedModel, folder: Path, repo_id: str, *, token: str | bool | None) -> None:
    """Replace transformers' template by the card of a compact model; a card that is on the hub already stays."""
    if not HfApi(token=token).file_exists(repo_id, "README.md"):
        write_card(folder / "README.md", model, None, repo_id=repo_id)


# The code of compact folders imports nothing of this package.
SavedMixin.write_card = _write_uploaded_card
