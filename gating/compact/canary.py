"""A small batch, and numbers of the outputs that a model had on it when it was saved, in the record of its folder.

A version of transformers that computes something else is noticed by it. Batches are made for the model as those of the
proofs are; floating-point inputs are stored as shapes and filled with a sine.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from gating.loader.modeling import canary_outputs
from gating.loader.record import build_dense
from gating.proof.probe import make_probe

__all__ = ["make_canary"]

# A bound on the integers of a batch, so that the record stays small.
_MOST = 1024
# Digits of an output that are stored.
_DIGITS = 6


def make_canary(model: PreTrainedModel) -> dict[str, Any] | None:
    """Return a small batch and numbers of the outputs of a model on it; None for a family that has no small batch.

    Outputs that differ from one pass to the next, as of encoders with random masks, are none either.
    """
    try:
        inputs = _describe(make_probe(model, batch_size=1, length=8))
        with _default_attention(model):
            outputs = [canary_outputs(model, inputs) for _ in range(2)]
    except Exception:  # Models raise any error for inputs that they cannot read.
        return None
    if not torch.equal(*outputs) or not outputs[0].isfinite().all() or not outputs[0].any():
        return None
    return {
        "class": type(model).__name__,
        "transformers": transformers.__version__,
        **inputs,
        "outputs": [float(f"{value:.{_DIGITS}g}") for value in outputs[0].tolist()],
    }


@contextmanager
def _default_attention(model: PreTrainedModel) -> Iterator[None]:
    """Set a model, in a ``with`` block, to the implementation of attention with which its folder is loaded."""
    before, default = (one.config._attn_implementation for one in (model, build_dense(model, plainly=True)))
    # The setter overwrites every tower.
    if before != default:
        model.set_attn_implementation(default)
    try:
        yield
    finally:
        if before != default:
            model.set_attn_implementation(before)


def _describe(batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the integers of a batch, and the shapes of its other inputs."""
    integers = {name: tensor.tolist() for name, tensor in batch.items() if not tensor.is_floating_point()}
    if sum(batch[name].numel() for name in integers) > _MOST:
        raise ValueError("the batch is too large")
    shapes = {name: list(tensor.shape) for name, tensor in batch.items() if tensor.is_floating_point()}
    return {"integers": integers, "shapes": shapes}
