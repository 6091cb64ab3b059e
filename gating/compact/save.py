"""Saving of compact models as folders that load with transformers alone."""

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedModel

from gating.compact.canary import make_canary
from gating.compact.decoders import write_layer_counts
from gating.compact.manifest import write_manifest
from gating.compact.stock import StockError, may_be_stock, stock_model, write_original
from gating.compact.verify import check_saved
from gating.discovery.find import search_attention
from gating.discovery.vocabulary import check_vocabulary, vocabulary_size
from gating.errors import InputError, InputTypeError
from gating.loader.checksums import CANARY, CONFIG, RECORD_KEY
from gating.loader.composing import write_code
from gating.loader.integrity import check_finite, write_checksums
from gating.loader.saving import become_compact, has_lost_units
from gating.proof.conditions import check_has_values, check_no_adapters, check_savable
from gating.report.card import write_card
from gating.report.rows import CompactReport
from gating.storage.files import replacing_folder
from gating.storage.hub import check_upload, upload

__all__ = ["Processor", "check_model", "save_compact"]


class Processor(Protocol):
    """A tokenizer, image processor or other preprocessor of transformers."""

    def save_pretrained(self, save_directory: Any) -> Any:
        """Save the preprocessor's files in a folder."""


def save_compact(
    model: PreTrainedModel,
    save_directory: str | os.PathLike[str],
    *,
    tokenizer: Processor | None = None,
    report: CompactReport | None = None,
    overwrite: bool = False,
    stock: bool | None = None,
    verify: bool = True,
    probe: Mapping[str, Tensor] | None = None,
    repo_id: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
) -> Path:
    """Save a compact model as a folder: configuration, weights, tokenizer, model card, and code to load it if needed.

    Where every layer keeps equally many units and the configuration can say so, it is a dense model of smaller sizes,
    which any version of transformers and other runtimes load; the numbers of the kept units are in a file beside it,
    ``head_gating.json``. The folder is written whole or not at all: first beside its place, then moved there.

    Args:
        model: A model whose gates were finalized, or whose heads or neurons were pruned; it stays as it is.
        save_directory: Path of the folder.
        tokenizer: The tokenizer, or the image processor, to save with the model.
        report: Measurements for the model card.
        overwrite: Whether a folder at this path may be renamed, to ``compact.1`` and so on.
        stock: Whether to write a dense model with smaller sizes in its configuration. By default where that is
            possible; with True, anything else is an error; with False, a compact folder is written in any case.
        verify: Whether to reject weights that are NaN or infinite, and to load the saved folder and compare outputs,
            which temporarily takes the memory of a second model.
        probe: Batch for this comparison, as keyword arguments of the model; by default made from its configuration.
        repo_id: Name on the hub, such as ``user/name``, to upload the folder to afterwards. A repository is created if
            there is none; in an existing one, weights and files of the same names are replaced.
        private: Whether a new repository is private; by default as the account is set.
        token: Token of the hub; by default the one of the login.

    Returns:
        The path of the folder.

    Raises:
        TypeError: The model is not a model of transformers.
        ValueError: The model still has gates or adapters, its weights are NaN or packed, its outputs differ after
            loading it from the folder, or the configuration class cannot describe it as a stock model (StockError);
            or ``repo_id`` is invalid, or there is no token.
        FileExistsError: The folder is not empty and ``overwrite`` is false.
        ConnectionError: The upload has failed; the folder is saved.

    Example:
        >>> import tempfile
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     (save_compact(model, f"{parent}/compact") / "config.json").is_file()
        True
    """
    check_model(model)
    if repo_id is not None:
        check_upload(repo_id, token=token)
    if verify:
        check_finite(model, type(model).__name__)
    origin = getattr(tokenizer, "name_or_path", None) or "this model"
    check_vocabulary(tokenizer, size=vocabulary_size(model), name=origin)
    place = Path(save_directory)
    forms = [stock] if stock is not None else [True, False] if may_be_stock(model) else [False]
    for form in forms:
        try:
            with replacing_folder(place, overwrite=overwrite) as folder:
                _write(model, folder, tokenizer, stock=form)
                write_card(folder / "README.md", model, report, form, repo_id=repo_id)
                if verify:
                    _check_saved(model, folder, probe, stock=form)
                write_manifest(folder)
            break
        except StockError:
            if form is forms[-1]:
                raise
    if repo_id is not None:
        upload(place, repo_id, private=private, token=token)
    return place


def check_model(model: PreTrainedModel) -> None:
    """Raise an error for a model that no folder can hold.

    Raises:
        TypeError: It is not a model of transformers.
        ValueError: It has gates, adapters or packed weights, or no values.
    """
    if not isinstance(model, PreTrainedModel):
        raise InputTypeError(f"Only models of transformers can be saved as a folder, got {type(model).__name__}.")
    if hasattr(model, "head_gates"):
        raise InputError("The model still has gates: call gating.finalize(model, gates) before saving it.")
    check_no_adapters(model)
    check_has_values(model)
    check_savable(model)


def _write(model: PreTrainedModel, folder: Path, tokenizer: Processor | None, *, stock: bool) -> None:
    """Write the files of a model and its tokenizer, but no card."""
    if not has_lost_units(model):
        search_attention(model)  # Raises for a model without heads or neurons to describe.
    # Class, configuration and record are those of a copy with the same modules.
    compact = copy.copy(model)
    compact.config = copy.deepcopy(model.config)
    become_compact(compact)
    (stock_model(model) if stock else compact).save_pretrained(folder)
    if not stock:
        _complete(model, compact, folder)
    elif has_lost_units(model):
        write_original(compact, folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _complete(model: PreTrainedModel, compact: PreTrainedModel, folder: Path) -> None:
    """Add a batch and outputs to the record of a folder that was just saved, and head counts of layers for vLLM."""
    path, canary = folder / CONFIG, make_canary(model)
    if canary is not None:
        config = json.loads(path.read_text(encoding="utf-8"))
        config[RECORD_KEY][CANARY] = canary
        path.write_text(json.dumps(config), encoding="utf-8")
    if write_layer_counts(model, folder):
        write_code(compact, folder, has_layer_counts=True)
    write_checksums(folder)


def _check_saved(model: PreTrainedModel, folder: Path, probe: Mapping[str, Tensor] | None, *, stock: bool) -> None:
    """Check a saved folder; the error about a stock model has the other form as a remedy."""
    try:
        check_saved(model, folder, probe=probe)
    except InputError as error:
        if not stock:
            raise
        raise StockError(str(error), python=" Or save it with stock=False, as a compact folder.", command="") from error
