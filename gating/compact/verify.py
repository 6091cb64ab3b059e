"""Check that a saved folder loads as the same model."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from gating.compact.load import load_compact
from gating.errors import DamageError, InputError, explain, shorten
from gating.proof.masked import ExpectedOutputs
from gating.proof.outputs import max_relative_difference, tolerance_for

__all__ = ["SAVED_TOLERANCE", "check_outputs", "check_saved"]

# Largest relative difference: lost weights change outputs more, another attention kernel less.
SAVED_TOLERANCE = 3e-3


def check_saved(model: PreTrainedModel, folder: Path, *, probe: Mapping[str, Tensor] | None = None) -> None:
    """Load a model from the folder that it was just saved in, and compare weights and outputs.

    Equal weights are not enough: some families compute with buffers that are not saved, or with settings of the
    configuration. Equal outputs are not enough either: a batch may leave out a tower. Without a ``probe``, the batch is
    made from the configuration; if that is impossible for the family, weights alone are compared.

    Raises:
        ValueError: The folder does not load, the model does not accept the given probe, or outputs differ.
    """
    loaded = _load(model, folder)
    coarsest = max((parameter.dtype for parameter in model.parameters()), key=lambda dtype: torch.finfo(dtype).eps)
    tolerance = max(SAVED_TOLERANCE, tolerance_for(coarsest))
    _check_weights(model, loaded, tolerance)
    try:
        expected = ExpectedOutputs.of(model, probe, tolerance=tolerance)
    except ValueError:
        if probe is not None:
            raise
        return
    with suppress(ValueError, AttributeError):
        # Skip if equal: the setter overwrites every tower.
        if loaded.config._attn_implementation != model.config._attn_implementation:
            loaded.set_attn_implementation(model.config._attn_implementation)
    check_outputs(model, expected, expected.difference(loaded.to(model.device)))  # type: ignore[arg-type]


def check_outputs(model: PreTrainedModel, expected: ExpectedOutputs, difference: float) -> None:
    """Raise ``InputError`` if the outputs of a saved model differ from its own by more than the tolerance."""
    if not difference <= expected.tolerance:
        raise InputError(
            f"{type(model).__name__} gives other outputs after it is saved and loaded: they differ by "
            f"{difference:.1e}, so it has values that its configuration and weights do not hold. Nothing was written; "
            "pass verify=False to save it anyway."
        )


def _check_weights(model: PreTrainedModel, loaded: PreTrainedModel, tolerance: float) -> None:
    """Raise ``InputError`` if a weight is another one after it is saved and loaded."""
    found, padding = loaded.state_dict(), _padding_rows(model)
    for name, tensor in model.state_dict().items():
        other = found.get(name)
        if other is None or other.shape != tensor.shape or not tensor.is_floating_point():
            continue  # Stock models have other names where theirs differ; the outputs tell.
        if name in padding:
            tensor, other = (torch.cat([rows[: padding[name]], rows[padding[name] + 1 :]]) for rows in (tensor, other))
        if max_relative_difference([tensor], [other.to(tensor)]) > tolerance:
            raise InputError(
                f"{name} of {type(model).__name__} has other values after it is saved and loaded. Nothing was written; "
                "pass verify=False to save it anyway."
            )


def _load(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    try:
        if hasattr(transformers, type(model).__name__):
            return load_compact(folder, verify=False)
        loaded: PreTrainedModel = type(model).from_pretrained(folder, dtype="auto")
        return loaded
    except Exception as error:  # transformers raises any class for a configuration of another model.
        # The message about damage would mislead: the folder was just written, so its files are whole.
        reason = error.reason if isinstance(error, DamageError) else explain(error.__cause__ or error)
        reason = reason.replace(str(folder), "the folder").rstrip(".")
        raise InputError(
            f"{type(model).__name__} does not load after it is saved, so its configuration does not describe it: "
            f"{shorten(reason, most=300)}. Nothing was written; pass verify=False to save it anyway."
        ) from error


def _padding_rows(model: PreTrainedModel) -> dict[str, int]:
    """Return the row of the padding token in each embedding: some models set it to zero when they are loaded."""
    return {
        f"{name}.weight": module.padding_idx
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module.padding_idx is not None
    }
