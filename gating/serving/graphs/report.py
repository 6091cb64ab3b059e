"""The report of an exported graph."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gating.serving.graphs.formats import RuntimeFormat

__all__ = ["RuntimeReport"]


@dataclass(frozen=True)
class RuntimeReport:
    """An export and the result of its check.

    Attributes:
        folder: Folder of the export; ``ExportedModel.from_pretrained(folder)`` of transformers loads it.
        format: ``onnx`` or ``torch``.
        max_difference: Largest relative difference of the graph with float weights to the model's own outputs over all
            checked batches, padding positions excluded.
        megabytes: Size of the folder, in millions of bytes.
        inputs: Inputs of the graph with their axes: a name for a dynamic axis, a number for a fixed one.
        checked: Description of the checked batches.
        refused: Batches that the model accepts and the graph rejects, each as an input and its shape.
        left_out: Inputs that the tokenizer or processor makes and the graph does not have.
        context: Sentence about texts that are too long for the graph; None if it takes all that the model does.
        int8_difference: The same difference after quantization to 8-bit integers; None for float weights.
    """

    folder: Path
    format: RuntimeFormat
    max_difference: float
    megabytes: float
    inputs: Mapping[str, tuple[int | str, ...]]
    checked: str
    refused: tuple[str, ...]
    left_out: tuple[str, ...]
    context: str | None = None
    int8_difference: float | None = None

    @property
    def path(self) -> Path:
        """The folder, by the name that it has in the reports of all formats."""
        return self.folder

    @property
    def sentences(self) -> tuple[str, ...]:
        """The contents and the result of the check, for people."""
        inputs = ", ".join(f"{name} [{', '.join(map(str, axes))}]" for name, axes in self.inputs.items())
        graph = "its outputs differ" if self.int8_difference is None else "the outputs of the float graph differ"
        lines = [
            f"Its inputs are {inputs}",
            f"Checked on {self.checked}: {graph} from the model's by {self.max_difference:.1e}",
        ]
        if self.int8_difference is not None:
            lines.append(
                f"Its weights are 8-bit integers, with which the outputs on these random batches differ by "
                f"{self.int8_difference:.1e}: measure its accuracy before use"
            )
        lines += [f"It rejects {refused}, which the model accepts" for refused in self.refused]
        lines += [
            f"The tokenizer or processor also makes {name}, which the export does not accept: leave that out"
            for name in self.left_out
        ]
        lines += [] if self.context is None else [self.context]
        return tuple(lines)
