"""Saving a compact model as a folder that loads anywhere."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedModel

from gating.compact.verify import check_saved
from gating.discovery.find import find_attention_blocks
from gating.discovery.refusals import check_has_values, check_no_adapters, check_savable
from gating.errors import InputError, InputTypeError
from gating.report.card import CompactReport, write_card
from gating.storage.folders import replacing_folder
from gating.structure.compact import become_compact
from gating.structure.integrity import check_finite

__all__ = ["Processor", "save_compact"]


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
    verify: bool = True,
    probe: Mapping[str, Tensor] | None = None,
) -> Path:
    """Save a compact model as a folder: configuration, weights, tokenizer, code to load it and a model card.

    The folder appears whole or not at all: it is written beside its place and moved there.

    Args:
        model: A model whose gates were finalized or whose heads were pruned.
        save_directory: Where the folder goes.
        tokenizer: The tokenizer, or the image processor, to save with it.
        report: Measurements for the model card.
        overwrite: Whether the folder of an earlier compact model may be replaced, if nothing else is in it.
        verify: Whether to refuse weights that are NaN or infinite, and to load the folder once and compare outputs,
            which takes the memory of a second model for a moment.
        probe: A batch as the model's keyword arguments for that; made from its configuration when left out.

    Returns:
        The path of the folder.

    Raises:
        TypeError: The model is none of transformers.
        ValueError: The model still has gates or adapters, or weights that are NaN or packed, or is another one when it
            is loaded from the folder.
        FileExistsError: The folder is there and not empty, and ``overwrite`` is false, or it is not only an earlier
            compact model, or the model was loaded from it.
    """
    if not isinstance(model, PreTrainedModel):
        raise InputTypeError(
            f"Only models of transformers can be saved as a folder, and {type(model).__name__} is none."
        )
    if hasattr(model, "head_gates"):
        raise InputError("The model still has gates: call gating.finalize(model, gates) before saving it.")
    check_no_adapters(model)
    check_has_values(model)
    check_savable(model)
    if verify:
        check_finite(model, type(model).__name__)
    sources = [str(getattr(part, "name_or_path", "")) for part in (model, tokenizer)]
    with replacing_folder(Path(save_directory), overwrite=overwrite, kind="compact model", keep=sources) as folder:
        find_attention_blocks(model)  # Raises for a model without heads to describe.
        become_compact(model)
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        write_card(folder / "README.md", model, report)
        if verify:
            check_saved(model, folder, probe=probe)
    return Path(save_directory)
