"""Saving a compact model as a folder that loads anywhere, and loading it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from gating.card import CompactReport, write_card
from gating.heads.compact import become_compact, compact_class
from gating.heads.record import RECORD_KEY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["load_compact", "save_compact"]


def save_compact(
    model: PreTrainedModel,
    save_directory: str | os.PathLike[str],
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    report: CompactReport | None = None,
    overwrite: bool = False,
) -> Path:
    """Save a compact model as a folder: configuration, weights, tokenizer, code to load it and a model card.

    The folder appears whole or not at all: it is written beside its place and moved there.

    Args:
        model: A model whose gates were finalized or whose heads were pruned.
        save_directory: Where the folder goes.
        tokenizer: The tokenizer to save with it.
        report: Measurements for the model card.
        overwrite: Whether an existing folder may be replaced.

    Returns:
        The path of the folder.

    Raises:
        ValueError: The model still has gates.
        FileExistsError: The folder is there and not empty, and ``overwrite`` is false.
    """
    if hasattr(model, "head_gates"):
        raise ValueError("The model still has gates: call gating.finalize(model, gates) before saving it.")
    become_compact(model)
    with _replacing_folder(Path(save_directory), overwrite=overwrite) as folder:
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
        ValueError: The record of kept heads, the weights and the model class do not fit together. Nothing was loaded.
    """
    folder = Path(save_directory)
    for path in (folder, folder / "config.json"):
        if not path.exists():
            raise FileNotFoundError(f"There is no compact model in {folder}: {path} does not exist.")
    config = AutoConfig.from_pretrained(folder)
    cls = _model_class(config, folder)
    _check_shapes(cls, config, folder)
    model: PreTrainedModel = cls.from_pretrained(folder, dtype=dtype or "auto")
    return model


def _model_class(config: PreTrainedConfig, folder: Path) -> type[PreTrainedModel]:
    name = (config.architectures or [""])[0]
    base = getattr(transformers, name, None)
    if not (isinstance(base, type) and issubclass(base, PreTrainedModel)):
        raise ValueError(f"{folder}/config.json names the architecture {name!r}, which transformers does not have.")
    return compact_class(base) if hasattr(config, RECORD_KEY) else base


def _check_shapes(cls: type[PreTrainedModel], config: PreTrainedConfig, folder: Path) -> None:
    """Compare the shapes that the record asks for with those in the file, before anything is allocated."""
    with torch.device("meta"):
        model = cls(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = _stored_shapes(folder)
    for name, shape in expected.items():
        # Tied weights are stored once, under one of their names.
        if name in found and found[name] != shape:
            raise ValueError(
                f"{folder} is damaged or mixed from two models: with the heads that config.json keeps, {name} has "
                f"shape {list(shape)}, but model.safetensors holds {list(found[name])}. Export the model again."
            )
    unknown = sorted(set(found) - set(expected))
    missing = sorted(set(expected) - set(found) - {*model.all_tied_weights_keys, *model.all_tied_weights_keys.values()})
    if unknown or missing:
        raise ValueError(
            f"{folder} is damaged or mixed from two models: the weights "
            + (f"lack {missing[0]}" if missing else f"hold {unknown[0]}, which the heads in config.json do not keep")
            + ". Export the model again."
        )


def _stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"There are no weights in {folder}: model.safetensors does not exist.")
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as weights:
                shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}). Export the model again.") from error
    return shapes


@contextmanager
def _replacing_folder(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder that takes the target's place when the block ends without an error."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())) and not overwrite:
        raise FileExistsError(f"{target} exists already. Choose another place, or pass overwrite=True.")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    new, old = scratch / "new", scratch / "old"
    try:
        new.mkdir()
        yield new
        if target.exists():
            target.rename(old)
        new.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
