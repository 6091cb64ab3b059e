"""Saving of compact models as folders that load with transformers alone, checked before they appear.

For other versions of transformers, the record of a folder has a small batch, and numbers of the outputs that the model
had on it when it was saved. Floating-point inputs are stored as shapes and filled with a sine.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from gating.compact.files import write_manifest
from gating.compact.limits import check_finite, check_model
from gating.compact.load import load_compact
from gating.compact.stock import StockError, may_be_stock, stock_model
from gating.errors import InputError, explain, shorten
from gating.loader.modeling import CANARY, CONFIG, RECORD_KEY, canary_outputs
from gating.loader.saving import compact_copy, has_lost_units, write_checksums, write_config
from gating.proof.outputs import evaluating, max_relative_difference, tolerance_for
from gating.proof.probe import make_probe
from gating.proof.prove import ExpectedOutputs
from gating.report.card import write_card
from gating.report.rows import CompactReport
from gating.storage.files import replacing_folder
from gating.storage.hub import RECORD_FILE, check_upload, upload

# Largest relative difference: lost weights change outputs more, another attention kernel less.
SAVED_TOLERANCE = 3e-3
# A bound on the integers of a stored batch, so that the record stays small.
_MOST = 1024
# Digits of an output that are stored.
_DIGITS = 6
_REMEDY = "Nothing was written; pass verify=False to save it anyway."


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
    which transformers and other runtimes load without code; the numbers of the kept units are in a file beside it,
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
    place = Path(save_directory)
    forms = [stock] if stock is not None else [True, False] if may_be_stock(model) else [False]
    for form in forms:
        try:
            with replacing_folder(place, overwrite=overwrite) as folder:
                _write(model, folder, tokenizer, stock=form)
                write_card(folder / "README.md", model, report, form, repo_id=repo_id)
                if verify and (canary := check_saved(model, folder, probe=probe)) and not form:
                    _add_canary(folder, canary)
                write_manifest(folder)
            break
        except InputError as error:
            if form is not forms[-1]:
                continue
            if not form or isinstance(error, StockError):
                raise
            raise StockError(f"{error} Or save it with stock=False, as a compact folder.") from error
    if repo_id is not None:
        upload(place, repo_id, private=private, token=token)
    return place


def _write(model: PreTrainedModel, folder: Path, tokenizer: Processor | None, *, stock: bool) -> None:
    """Write the files of a model and its tokenizer, but no card."""
    compact = compact_copy(model)
    if stock:
        stock_model(model).save_pretrained(folder)
        if has_lost_units(model):
            write_config(compact, folder / RECORD_FILE)
    else:
        compact.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _add_canary(folder: Path, canary: Mapping[str, Any]) -> None:
    """Write a small batch and outputs into the record of a folder."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config[RECORD_KEY][CANARY] = canary
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    write_checksums(folder)


def check_saved(
    model: PreTrainedModel, folder: Path, *, probe: Mapping[str, Tensor] | None = None
) -> dict[str, Any] | None:
    """Load a model from the folder that it was just saved in, and compare weights and outputs.

    Equal weights are not enough: some families compute with buffers that are not saved, or with settings of the
    configuration. Equal outputs are not enough either: a batch may leave out a tower. Without a ``probe``, the batch is
    made from the configuration; if that is impossible for the family, weights alone are compared.

    Returns the canary of the folder, of the loaded model: the given one may have another attention and device.
    """
    loaded = _load(model, folder)
    canary = _make_canary(loaded)
    coarsest = max((parameter.dtype for parameter in model.parameters()), key=lambda dtype: torch.finfo(dtype).eps)
    tolerance = max(SAVED_TOLERANCE, tolerance_for(coarsest))
    _check_weights(model, loaded, tolerance)
    try:
        expected = ExpectedOutputs.of(model, probe, tolerance=tolerance)
    except ValueError:
        if probe is not None:
            raise
        return canary
    with suppress(ValueError, AttributeError):
        # Skip if equal: the setter overwrites every tower.
        if loaded.config._attn_implementation != model.config._attn_implementation:
            loaded.set_attn_implementation(model.config._attn_implementation)
        # Transformers 5.10 loads experts with an operation that torch 2.8 has for GPUs alone.
        if loaded.config._experts_implementation != model.config._experts_implementation:
            loaded.set_experts_implementation(model.config._experts_implementation)
    check_outputs(model, expected, expected.difference(loaded.to(model.device)))  # type: ignore[arg-type]
    return canary


def check_outputs(model: PreTrainedModel, expected: ExpectedOutputs, difference: float) -> None:
    """Raise ``InputError`` if the outputs of a saved model differ from its own by more than the tolerance."""
    if not difference <= expected.tolerance:
        raise InputError(
            f"{type(model).__name__} gives other outputs after it is saved and loaded: they differ by "
            f"{difference:.1e}, so it has values that its configuration and weights do not hold. {_REMEDY}"
        )


def _check_weights(model: PreTrainedModel, loaded: PreTrainedModel, tolerance: float) -> None:
    """Raise ``InputError`` if a weight is another one after it is saved and loaded."""
    found = loaded.state_dict()
    # Some models set the row of the padding token to zero when they are loaded; the outputs tell.
    others = {
        f"{name}.weight" for name, module in model.named_modules() if getattr(module, "padding_idx", None) is not None
    }
    for name, tensor in model.state_dict().items():
        other = found.get(name)
        # Stock models have other names where theirs differ.
        if other is None or other.shape != tensor.shape or not tensor.is_floating_point() or name in others:
            continue
        if max_relative_difference([tensor], [other.to(tensor)]) > tolerance:
            raise InputError(
                f"{name} of {type(model).__name__} has other values after it is saved and loaded. {_REMEDY}"
            )


def _load(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    try:
        load: Any = partial(load_compact, verify=False)
        if not hasattr(transformers, type(model).__name__):
            load = partial(type(model).from_pretrained, dtype="auto")
        loaded: PreTrainedModel = load(folder)
    except Exception as error:  # transformers raises any class for a configuration of another model.
        raise InputError(
            f"{type(model).__name__} does not load after it is saved, so its configuration does not describe it "
            f"({shorten(explain(error), most=300)}) {_REMEDY}"
        ) from error
    return loaded


def _make_canary(model: PreTrainedModel) -> dict[str, Any] | None:
    """Return a small batch and numbers of the outputs of a model on it; None for a family that has no small batch.

    Outputs that differ from one pass to the next, as of encoders with random masks, are none either.
    """
    try:
        batch = make_probe(model, batch_size=1, length=8)
        floating = {name for name, tensor in batch.items() if tensor.is_floating_point()}
        canary: dict[str, Any] = {
            "class": type(model).__name__,
            "transformers": transformers.__version__,
            "integers": {name: tensor.tolist() for name, tensor in batch.items() if name not in floating},
            "shapes": {name: list(batch[name].shape) for name in floating},
        }
        with evaluating(model):
            first, second = (canary_outputs(model, canary) for _ in range(2))
    except Exception:  # Models raise any error for inputs that they cannot read.
        return None
    is_small = sum(batch[name].numel() for name in canary["integers"]) <= _MOST
    if not is_small or not torch.equal(first, second) or not first.isfinite().all() or not first.any():
        return None
    return {**canary, "outputs": [float(f"{value:.{_DIGITS}g}") for value in first.tolist()]}
