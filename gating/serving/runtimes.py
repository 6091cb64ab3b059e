"""The runtimes that run a model, with the commands that export or serve it."""

import importlib
from pathlib import Path

from transformers import PreTrainedModel

from gating.errors import InputError
from gating.report.page import Runtime

__all__ = ["find_runtimes"]

# By the name of a runtime, the format of the command, and the function that raises for other models.
_CHECKED = {
    "llama.cpp": ("gguf", "serving.gguf.architectures:find_architecture"),
    "ONNX Runtime GenAI": ("onnx-genai", "serving.genai.export:check_genai"),
    "OpenVINO": ("openvino", "serving.openvino.export:check_openvino"),
    "vLLM": ("vllm", "serving.vllm:check_vllm"),
}


def find_runtimes(model: PreTrainedModel, folder: Path, *, compact: Path | None = None) -> list[Runtime]:
    """Return the runtimes of serving, with a command or the reason for which they do not run a model.

    Nothing is exported: an export is checked when it is written.

    Args:
        model: The model, compact or dense.
        folder: Folder of its run, or its own, for the commands.
        compact: Its own folder if that is a stock model, which vLLM serves as it is.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> [runtime.name for runtime in find_runtimes(model, Path("run")) if runtime.command]
        ['ONNX Runtime', 'OpenVINO']
    """
    runtimes = [Runtime("ONNX Runtime", f"head-gating export {folder} --format onnx")]
    for name, (format, check) in _CHECKED.items():
        command = f"head-gating export {folder} --format {format}"
        if format == "vllm" and compact is not None:
            check, command = "compact.decoders:sizes_of", f"vllm serve {compact}"
        module, _, function = check.partition(":")
        try:
            getattr(importlib.import_module(f"gating.{module}"), function)(model)
        except InputError as error:
            runtimes.append(Runtime(name, "", str(error)))
        else:
            runtimes.append(Runtime(name, command))
    return runtimes
