"""Saving a compact model as a folder that loads anywhere, and loading it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from gating.card import CompactReport, write_card
from gating.folder import replacing_folder
from gating.heads.compact import become_compact, compact_class
from gating.heads.record import RECORD_KEY
from gating.heads.refusals import check_no_adapters

__all__ = ["Processor", "load_compact", "save_compact"]


class Processor(Protocol):
    """What makes a model's inputs of raw examples: a tokenizer or an image processor."""

    def save_pretrained(self, save_directory: Any) -> Any:
        """Save it as files in a folder."""


def save_compact(
    model: PreTrainedModel,
    save_directory: str | os.PathLike[str],
    *,
    tokenizer: Processor | None = None,
    report: CompactReport | None = None,
    overwrite: bool = False,
) -> Path:
    """Save a compact model as a folder: configuration, weights, tokenizer, code to load it and a model card.

    The folder appears whole or not at all: it is written beside its place and moved there.

    Args:
        model: A model whose gates were finalized or whose heads were pruned.
        save_directory: Where the folder goes.
        tokenizer: The tokenizer, or the image processor, to save with it.
        report: Measurements for the model card.
        overwrite: Whether an existing folder may be replaced.

    Returns:
        The path of the folder.

    Raises:
        TypeError: The model is none of transformers.
        ValueError: The model still has gates or adapters.
        FileExistsError: The folder is there and not empty, and ``overwrite`` is false.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"Only models of transformers can be saved as a folder, and {type(model).__name__} is none.")
    if hasattr(model, "head_gates"):
        raise ValueError("The model still has gates: call gating.finalize(model, gates) before saving it.")
    check_no_adapters(model)
    become_compact(model)
    with replacing_folder(Path(save_directory), overwrite=overwrite) as folder:
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        write_card(folder / "README.md", model, report)
    return Path(save_directory)


def load_compact(save_directory: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Load a folder of :func:`save_compact` without running code from it.

    Args:
        save_directory: The folder.
        dtype: Type of the weights; the one they were saved in when left out.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: The folder or one of its files is missing.
        ValueError: The record of kept heads, the weights and the model class do not fit together.
    """
    folder = Path(save_directory)
    for path in (folder, folder / "config.json"):
        if not path.exists():
            raise FileNotFoundError(f"There is no compact model in {folder}: {path} does not exist.")
    config = AutoConfig.from_pretrained(folder)
    cls = _model_class(config, folder)
    _check_files(folder)
    with _without_load_report():
        # Mismatches are let through to be told below, in the words of this package.
        loaded: Any = cls.from_pretrained(
            folder, dtype=dtype or "auto", ignore_mismatched_sizes=True, output_loading_info=True
        )
    model, found = loaded
    for kind, what in (
        ("mismatched_keys", "has another shape in model.safetensors than the heads that config.json keeps ask for"),
        ("missing_keys", "is not in model.safetensors"),
        ("unexpected_keys", "is in model.safetensors, but the heads in config.json do not keep it"),
    ):
        if found[kind]:
            first = sorted(found[kind])[0]
            name = first if isinstance(first, str) else first[0]
            raise ValueError(f"{folder} is damaged or mixed from two models: {name} {what}. Export the model again.")
    assert isinstance(model, PreTrainedModel)
    return model


def _model_class(config: PreTrainedConfig, folder: Path) -> type[PreTrainedModel]:
    name = (config.architectures or [""])[0]
    base = getattr(transformers, name, None)
    if not (isinstance(base, type) and issubclass(base, PreTrainedModel)):
        raise ValueError(f"{folder}/config.json names the architecture {name!r}, which transformers does not have.")
    return compact_class(base) if hasattr(config, RECORD_KEY) else base


def _check_files(folder: Path) -> None:
    """Open every file of weights, which checks that its header and its length fit together."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"There are no weights in {folder}: model.safetensors does not exist.")
    for path in files:
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}). Export the model again.") from error


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Keep transformers from printing its table of mismatches before our sentence."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(before)
