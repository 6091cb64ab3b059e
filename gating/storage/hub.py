"""Downloads from the Hugging Face Hub and uploads to it, with errors that name a remedy."""

import os
import re
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants as hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from gating.errors import InputError, MissingFileError, UnreachableError, UserError, shorten

__all__ = [
    "MODEL_FILES",
    "RECIPE_FILES",
    "RECORD_FILE",
    "cached_card",
    "check_login",
    "check_upload",
    "download",
    "invalid_name",
    "snapshot_of",
    "upload",
]

# Checksums of a folder, and the record of kept units in a stock folder, which has none in its configuration.
RECORD_FILE = "head_gating.json"
# Files of a recipe beside its configuration: its table and its tensors.
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


_SNAPSHOT = re.compile(r"models--(?P<name>[^/\\]+)[/\\]snapshots[/\\](?P<revision>\w+)$")
_LOGIN = "log in with hf auth login, or give a token (token=..., HF_TOKEN)"
_REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
# Adapters are refused after the download, pickles and code are not downloaded at all.
_DOWNLOADED = ["README.md", "adapter_config.json", RECORD_FILE, *MODEL_FILES, *RECIPE_FILES]
# Weights of an earlier upload, of which a smaller model may have other files.
_REPLACED = [
    *("model.safetensors", "model-[0-9]*-of-[0-9]*.safetensors", "model.safetensors.index.json"),
    # A compact model may take the place of a stock one, or of a recipe, and a recipe that of a model.
    RECORD_FILE,
    *RECIPE_FILES,
]


def invalid_name(repo_id: str) -> str | None:
    """Return the reason why a name is invalid on the hub; None if it is valid."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        return str(error).rstrip(".")
    return None


def snapshot_of(folder: str) -> tuple[str, str] | None:
    """Return the name and commit of a model whose folder is in the cache of the hub; None for another folder.

    Example:
        >>> snapshot_of("/home/me/hub/models--user--name/snapshots/0a1b")
        ('user/name', '0a1b')
    """
    found = _SNAPSHOT.search(folder)
    return None if found is None else (found["name"].replace("--", "/"), found["revision"])


def download(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Download the configuration, weights and tokenizer of a model; no code and no pickles.

    While the hub cannot be reached, the model is taken from the local cache.

    Returns:
        The folder in the cache.

    Raises:
        FileNotFoundError: The model or the revision does not exist.
        ConnectionError: The hub cannot be reached or refuses access.
    """
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                cache_dir=None if cache_dir is None else os.fspath(cache_dir),
                allow_patterns=_DOWNLOADED,
                local_files_only=hub.is_offline_mode(),
            )
        )
    except LocalEntryNotFoundError as error:  # The hub was not reached, and the cache lacks the model.
        raise _download_error(repo_id, revision, error.__cause__ or error) from error
    except Exception as error:  # The HTTP library, and so its errors, differ between versions of huggingface_hub.
        raise _download_error(repo_id, revision, error) from error


def _download_error(repo_id: str, revision: str | None, error: BaseException) -> UserError:
    at = repo_id if revision is None else f"{repo_id} (revision {revision})"
    if isinstance(error, GatedRepoError):
        page = f"{hub.ENDPOINT}/{repo_id}"
        return UnreachableError(f"{repo_id} is gated on the hub: ask for access on {page}, and {_LOGIN}.")
    if isinstance(error, RepositoryNotFoundError):
        return MissingFileError(f"the hub has no model {repo_id}, or it is private: correct the name, or {_LOGIN}.")
    if isinstance(error, RevisionNotFoundError):
        return MissingFileError(f"{repo_id} has no revision {revision!r} on the hub: give a branch, tag or commit.")
    if _status(error) in _REFUSED:
        return UnreachableError(f"the hub refuses access to {at} with this token: {_LOGIN} that may read it.")
    if hub.is_offline_mode():
        return UnreachableError(f"HF_HUB_OFFLINE is set, and {at} is not in the cache of the hub: unset it.")
    return UnreachableError(
        f"{at} cannot be downloaded from {hub.ENDPOINT} ({_reason(error)}): connect to it and try again."
    )


def cached_card(repo_id: str, *, online: bool = False) -> tuple[bool, Path | None]:
    """Return whether any part of a model is in the hub's cache, and the path of its model card if that is there.

    If ``online``, the card of a model in the cache that lacks it is downloaded.
    """
    folder = Path(hub.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")
    if not folder.is_dir():
        return False, None
    cards = list(folder.glob("snapshots/*/README.md"))
    if not cards and online:
        # Only the license of the base model is missing otherwise.
        with suppress(Exception):
            cards = [Path(huggingface_hub.hf_hub_download(repo_id, "README.md"))]
    return True, cards[0] if cards else None


def check_upload(repo_id: str, *, token: str | bool | None = None, setting: str = "repo_id") -> None:
    """Check, without a request, that an upload can be tried; errors name the parameter or setting.

    Raises:
        ValueError: The name is invalid, or there is no token.
        ConnectionError: Offline mode is on.
    """
    reason = invalid_name(repo_id)
    if reason is not None:
        raise InputError(f"{setting}={repo_id!r} is not a valid name on the hub: {reason}.")
    if hub.is_offline_mode():
        raise UnreachableError(f"Cannot upload to {repo_id}: HF_HUB_OFFLINE is set. Unset it, or leave out {setting}.")
    if not (isinstance(token, str) and token) and (token is False or not huggingface_hub.get_token()):
        raise InputError(
            f"An upload to {repo_id} needs a token: give token=..., set HF_TOKEN, or log in with hf auth login."
        )


def check_login(repo_id: str, *, setting: str) -> None:
    """Check that an upload can be tried, and that the hub accepts the token of the login.

    Raises:
        ValueError: The name is invalid, or there is no token.
        ConnectionError: The hub cannot be reached, or refuses the token.
    """
    check_upload(repo_id, setting=setting)
    try:
        huggingface_hub.HfApi().whoami()
    except Exception as error:
        raise UnreachableError(
            f"Cannot upload to {repo_id}: {hub.ENDPOINT} does not accept the login ({_reason(error)}). Log in with hf "
            f"auth login, or leave out {setting}."
        ) from error


def upload(folder: Path, repo_id: str, *, private: bool | None = None, token: str | bool | None = None) -> str:
    """Upload a folder, in place of files of the same names and all weights of an earlier upload.

    Returns:
        The address of the repository.

    Raises:
        ConnectionError: The upload has failed.
    """
    api = huggingface_hub.HfApi(token=token)
    try:
        repository = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository.repo_id,
            folder_path=folder,
            commit_message="Upload compact model of head-gating",
            delete_patterns=_REPLACED,
        )
    except Exception as error:  # Any failure, of the storage behind the hub as well, leaves the folder to upload.
        command = f"hf upload {repo_id} {folder}{' --private' if private else ''}"
        raise UnreachableError(
            f"The model is saved in {folder}, but it was not uploaded to {repo_id} ({_reason(error)}). Upload it later "
            f"with: {command}"
        ) from error
    return str(repository)


def _status(error: BaseException) -> int | None:
    """Return the status of the response that an error is about, if it is about one."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _reason(error: BaseException) -> str:
    """Return an error of the hub, or the one behind it, as a part of a sentence."""
    while error.__cause__ is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    status = _status(error)
    if isinstance(error, HfHubHTTPError) and status is not None:
        said = "the token is refused" if status in _REFUSED else error.server_message or error.response.reason_phrase
        return f"{status}, {said.rstrip('.')}"
    return shorten(" ".join(str(error).split()).rstrip("."), most=200) or type(error).__name__
