"""Check of an exported forward pass: its outputs on batches of several sizes, compared with the model's own."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from gating.errors import OperationError, explain, shorten
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.serving.graphs.batches import PaddedBatch, batches_to_check, real_positions
from gating.serving.graphs.runtime import GraphModel

__all__ = ["TOLERANCE", "check_exported", "check_quantized", "named_outputs"]

# Largest relative difference: runtimes sum in another order and fuse operations.
TOLERANCE = 1e-4


def check_exported(model: PreTrainedModel, graph: GraphModel, processor: object, runtime: str) -> dict[str, Any]:
    """Compare the outputs of a graph with those of the model on batches of several sizes and lengths.

    Returns:
        The inputs of the graph, the largest relative difference, and sentences for people, by the names of
        :class:`~gating.serving.graphs.graph_export.GraphReport`.

    Raises:
        RuntimeError: The graph rejects every batch, or its outputs differ.
    """
    difference, checked, refused = _compare(model, graph, processor)
    if difference > TOLERANCE:
        raise OperationError(
            f"The exported model's outputs differ from the model's by {difference:.1e}, more than rounding. "
            "Nothing was written."
        )
    inputs = graph.inputs
    named = ", ".join(f"{name} [{', '.join(map(str, axes))}]" for name, axes in inputs.items())
    sentences = [
        f"Its inputs are {named}",
        f"Checked in {runtime} on {_describe(checked)}: its outputs differ from the model's by {difference:.1e}",
        *(f"It rejects {batch}, which the model accepts" for batch in refused),
    ]
    return {"inputs": inputs, "max_difference": difference, "sentences": tuple(sentences)}


def check_quantized(
    model: PreTrainedModel, graph: GraphModel, processor: object, runtime: str, *, floats: Mapping[str, Any]
) -> dict[str, Any]:
    """Measure the largest relative difference that quantization makes to a model's outputs on the batches of a check.

    Args:
        model: The model.
        graph: The quantized graph.
        processor: Its tokenizer or processor, or None.
        runtime: Name of the runtime, for messages.
        floats: Result of :func:`check_exported` before quantization.

    Returns:
        The result of before, with this difference.

    Raises:
        RuntimeError: The quantized graph rejects every batch, or its outputs are not finite.
    """
    difference, _, _ = _compare(model, graph, processor)
    if math.isinf(difference):
        raise OperationError(
            f"With 8-bit weights, the outputs in {runtime} are not finite. Nothing was written: leave out int8."
        )
    sentence = (
        f"Its weights are 8-bit integers, with which the outputs on these random batches differ by {difference:.1e}: "
        "measure its accuracy before use"
    )
    return {**floats, "int8_difference": difference, "sentences": (*floats["sentences"], sentence)}


def _compare(
    model: PreTrainedModel, graph: GraphModel, processor: object
) -> tuple[float, list[PaddedBatch], tuple[str, ...]]:
    """Return the largest difference, the batches that were compared, and those that only the model accepts."""
    difference, checked, refused, reason = 0.0, list[PaddedBatch](), list[str](), ""
    for padded in batches_to_check(model, list(graph.axes), graph.axes, processor):
        batch = padded.inputs
        expected = forward_outputs(model, batch)
        try:
            actual = list(named_outputs(graph(**batch)).values())
        except Exception as error:  # Each runtime has error classes of its own.
            name, tensor = next(iter(batch.items()))
            refused.append(f"{name} of {' x '.join(map(str, tensor.shape))}")
            reason = shorten(explain(error), most=300)
            continue
        real = [[real_positions(output, batch) for output in outputs] for outputs in (expected, actual)]
        difference = max(difference, max_relative_difference(*real))
        checked.append(padded)
    if not checked:
        raise OperationError(f"The exported model rejects every batch ({reason}). Nothing was written.")
    return difference, checked, tuple(dict.fromkeys(refused))


def named_outputs(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the floating-point outputs of a graph by name."""
    return {name: tensor for name, tensor in outputs.items() if tensor.is_floating_point()}


def _describe(checked: list[PaddedBatch]) -> str:
    """Return the number of batches, their lengths and the sides of their padding in words."""
    lengths = [batch["input_ids"].shape[1] for batch, _ in checked if "input_ids" in batch]
    sides = sorted({side for _, side in checked if side is not None})
    tokens = f" of {min(lengths)} to {max(lengths):,} tokens" if lengths else ""
    return f"{len(checked)} batches{tokens}" + f", padded {' and '.join(sides)}" * bool(sides)
