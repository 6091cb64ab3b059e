"""Downloads from the Hugging Face Hub and uploads to it."""

import os
import re
from contextlib import suppress
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants as hub
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from gating.errors import InputError, explain, shorten

# Checksums of a folder, and the record of kept units in a stock folder, which has none in its configuration.
RECORD_FILE = "head_gating.json"
# Files of a recipe beside its configuration: its table and its tensors.
RECIPE_FILES = ("recipe.json", "recipe.safetensors")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-[0-9]*-of-[0-9]*.safetensors")
# File names of the models, tokenizers and processors of transformers, as patterns of fnmatch.
MODEL_FILES = (
    *("config.json", "generation_config.json", *_WEIGHTS),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    *("audio_tokenizer_config.json", "vocab.txt", "vocab.json", "vocab-src.json", "vocab-tgt.json"),
    *("entity_vocab.json", "target_vocab.json", "merges.txt", "bpe.codes", "dict.txt", "source.spm", "target.spm"),
    *("spiece.model", "spm.model", "spm_char.model", "sentencepiece.model", "sentencepiece.bpe.model"),
    *("tokenizer.model", "prophetnet.tokenizer", "normalizer.json", "word_shape.json", "word_pronunciation.json"),
    *("emoji.json", "byte_maps.json"),
)
# Adapters are refused after the download, pickles and code are not downloaded at all.
_DOWNLOADED = ["README.md", "adapter_config.json", RECORD_FILE, *MODEL_FILES, *RECIPE_FILES]
# Files of an earlier upload: a smaller model, a stock one, a compact one and a recipe each have other ones.
_REPLACED = [RECORD_FILE, *_WEIGHTS, *RECIPE_FILES]
_SNAPSHOT = re.compile(r"models--(?P<name>[^/\\]+)[/\\]snapshots[/\\](?P<revision>\w+)$")


def invalid_name(repo_id: str) -> str | None:
    """Return the reason why a name is invalid on the hub; None if it is valid."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        return str(error).rstrip(".")
    return None


def snapshot_of(folder: str) -> tuple[str, str] | None:
    """Return the name and commit of a model whose folder is in the cache of the hub; None for another folder.

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
    """Download the configuration, weights and tokenizer of a model, no code and no pickles; return the folder.

    While the hub cannot be reached, the model is taken from the local cache. ``FileNotFoundError`` tells that there is
    no such model or revision, ``ConnectionError`` anything else.
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
    except Exception as error:  # The HTTP library, and so its errors, differ between versions of huggingface_hub.
        at = repo_id if revision is None else f"{repo_id} (revision {revision})"
        if hub.is_offline_mode():
            raise ConnectionError(f"HF_HUB_OFFLINE is set, and {at} is not in the cache of the hub.") from error
        # Where the hub was not reached and the cache lacks the model, the cause tells why.
        cause = (error.__cause__ if isinstance(error, LocalEntryNotFoundError) else None) or error
        is_missing = isinstance(cause, (RepositoryNotFoundError, RevisionNotFoundError))
        kind = FileNotFoundError if is_missing and not isinstance(cause, GatedRepoError) else ConnectionError
        raise kind(f"{at} cannot be downloaded from {hub.ENDPOINT}: {_reason(cause)}") from error


def cached_card(repo_id: str, *, online: bool = False) -> tuple[bool, Path | None]:
    """Return whether a model is in the hub's cache, and the path of its model card: there or, if ``online``, loaded."""
    is_cached = (Path(hub.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")).is_dir()
    if is_cached:
        # Without the card, only the license of the base model is missing.
        with suppress(Exception):
            return True, Path(huggingface_hub.hf_hub_download(repo_id, "README.md", local_files_only=not online))
    return is_cached, None


def check_upload(repo_id: str, *, token: str | bool | None = None, setting: str = "repo_id") -> None:
    """Raise ``InputError`` unless the name of an upload is valid and there is a token; no request is made."""
    reason = invalid_name(repo_id)
    if reason is not None:
        raise InputError(f"{setting}={repo_id!r} is not a valid name on the hub: {reason}.")
    if not (isinstance(token, str) and token) and (token is False or not huggingface_hub.get_token()):
        raise InputError(
            f"An upload to {repo_id} needs a token: give token=..., set HF_TOKEN, or log in with hf auth login."
        )


def upload(folder: Path, repo_id: str, *, private: bool | None = None, token: str | bool | None = None) -> str:
    """Upload a folder, in place of files of the same names and all weights of an earlier upload; return the address.

    A ``ConnectionError`` ends with the command for later.
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
        raise ConnectionError(
            f"The model is saved in {folder}, but it was not uploaded to {repo_id} ({_reason(error)}). Upload it later "
            f"with: {command}"
        ) from error
    return str(repository)


def _reason(error: BaseException) -> str:
    return shorten(explain(error), most=400)
