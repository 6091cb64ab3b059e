"""Check of an exported model: its outputs on batches of several sizes, compared with the model's own."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from gating.errors import OperationError, explain, shorten
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.serving.graphs.batches import PaddedBatch, batches_to_check, real_positions

__all__ = ["TOLERANCE", "Axes", "ExportCheck", "check_exported", "check_quantized", "named_outputs"]

# Shape of each input of a graph: fixed sizes are integers, others are dynamic.
Axes = Mapping[str, tuple[object, ...]]

# Largest relative difference: runtimes sum in another order and fuse operations.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class ExportCheck:
    """Result of checking an exported model.

    Attributes:
        max_difference: Largest relative difference to the model's own outputs, padding positions excluded.
        inputs: Inputs of the graph with their axes: a name for a dynamic axis, a number for a fixed one.
        checked: Description of the checked batches.
        refused: Batches that the graph rejects, each as an input and its shape.
    """

    max_difference: float
    inputs: Mapping[str, tuple[int | str, ...]]
    checked: str
    refused: tuple[str, ...]

    def describe(
        self, left_out: Sequence[str], context: str | None, *, int8_difference: float | None = None
    ) -> list[str]:
        """Return the inputs and the result of the check, for people.

        Args:
            left_out: Inputs that the tokenizer or processor makes and the graph does not have.
            context: Sentence about texts that are too long for the graph, if any.
            int8_difference: Largest relative difference after quantization to 8-bit integers; None for float weights.
        """
        inputs = ", ".join(f"{name} [{', '.join(map(str, axes))}]" for name, axes in self.inputs.items())
        outputs = "its outputs differ" if int8_difference is None else "the outputs of the float graph differ"
        sentences = [
            f"Its inputs are {inputs}",
            f"Checked on {self.checked}: {outputs} from the model's by {self.max_difference:.1e}",
        ]
        if int8_difference is not None:
            sentences.append(
                "Its weights are 8-bit integers, with which the outputs on these random batches differ by "
                f"{int8_difference:.1e}: measure its accuracy before use"
            )
        sentences += [f"It rejects {refused}, which the model accepts" for refused in self.refused]
        sentences += [
            f"The tokenizer or processor also makes {name}, which the export does not accept: leave that out"
            for name in left_out
        ]
        return [*sentences, *([] if context is None else [context])]


def check_exported(model: PreTrainedModel, exported: Any, axes: Axes, processor: object) -> ExportCheck:
    """Compare the outputs of an exported model with those of the model on batches of several sizes and lengths.

    Raises:
        RuntimeError: The exported model rejects every batch, or its outputs differ.
    """
    check = _compare(model, exported, axes, processor)
    if check.max_difference > TOLERANCE:
        raise OperationError(
            f"The exported model's outputs differ from the model's by {check.max_difference:.1e}, more than rounding. "
            "Nothing was written."
        )
    return check


def check_quantized(
    model: PreTrainedModel, exported: Any, axes: Axes, processor: object, *, floats: ExportCheck
) -> float:
    """Return the largest relative difference that quantization makes to a model's outputs on the batches of a check.

    ``floats`` is the result of :func:`check_exported` before quantization, with the same other arguments.

    Raises:
        RuntimeError: The quantized model rejects a batch that it accepted before, or its outputs are not finite.
    """
    check = _compare(model, exported, axes, processor)
    if check.refused != floats.refused:
        raise OperationError(
            f"With 8-bit weights, the exported model rejects {', '.join(check.refused)}. Nothing was written: leave "
            "out int8."
        )
    if math.isinf(check.max_difference):
        raise OperationError(
            "With 8-bit weights, the exported model's outputs are not finite. Nothing was written: leave out int8."
        )
    return check.max_difference


def _compare(model: PreTrainedModel, exported: Any, axes: Axes, processor: object) -> ExportCheck:
    difference, checked, refused, reason = 0.0, list[PaddedBatch](), list[str](), ""
    for padded in batches_to_check(model, list(axes), axes, processor):
        batch = padded.inputs
        expected = forward_outputs(model, batch)
        try:
            actual = list(named_outputs(exported(**batch)).values())
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
    return ExportCheck(difference, _checked_axes(checked), _describe(checked), tuple(dict.fromkeys(refused)))


def named_outputs(outputs: Any, name: str = "") -> dict[str, Tensor]:
    """Return the floating-point tensors of nested outputs by their dotted names, all of which begin with a name."""
    if isinstance(outputs, Tensor):
        return {name: outputs} if outputs.is_floating_point() else {}
    pairs: Any = outputs.items() if isinstance(outputs, Mapping) else ()
    if isinstance(outputs, (list, tuple)):
        pairs = enumerate(outputs)
    return {
        found: tensor
        for key, value in pairs
        for found, tensor in named_outputs(value, f"{name}.{key}" if name else str(key)).items()
    }


def _sizes_by_axis(name: str, checked: list[PaddedBatch]) -> list[tuple[str, set[int]]]:
    """Return the name and the checked sizes of each axis of an input."""
    length = "decoder length" if name.startswith("decoder_") else "length"
    all_sizes = [set(sizes) for sizes in zip(*(batch[name].shape for batch, _ in checked), strict=True)]
    axes = ["batch", length, *(f"size {i}" for i in range(2, len(all_sizes)))]
    return list(zip(axes, all_sizes, strict=False))


def _checked_axes(checked: list[PaddedBatch]) -> dict[str, tuple[int | str, ...]]:
    """Return the axes of each input: the name of an axis that was checked with several sizes, else the size."""
    return {
        name: tuple(axis if len(sizes) > 1 else min(sizes) for axis, sizes in _sizes_by_axis(name, checked))
        for name in checked[0].inputs
    }


def _describe(checked: list[PaddedBatch]) -> str:
    """Return the checked sizes in words, such as "batches of 1 and 2, lengths of 7 and 12, padded left and right"."""
    found: dict[str, set[int]] = {"batch": set()}
    for name in checked[0].inputs:
        for axis, sizes in _sizes_by_axis(name, checked):
            if len(sizes) > 1 or axis == "batch":
                found[axis] = found.get(axis, set()) | sizes
    words = [f"{'batche' if axis == 'batch' else axis}s of {_listed(sizes)}" for axis, sizes in found.items()]
    sides = sorted({side for _, side in checked if side is not None})
    return ", ".join(words) + f", padded {' and '.join(sides)}" * bool(sides)


def _listed(numbers: set[int]) -> str:
    *others, last = map(str, sorted(numbers))
    return f"{', '.join(others)} and {last}" if others else last
