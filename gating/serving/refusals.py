"""Refused models with the formats that take them, and failures of exporters, as sentences."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from transformers import PreTrainedModel

from gating.errors import InputError, OperationError, UserError, explain, shorten

__all__ = ["check_supported", "reason_against", "reporting_failure"]

# By format, the function that raises for models that its runtime does not run. They are imported when they are used:
# exporters import this module.
_CHECKS: Mapping[str, str] = {
    "gguf": "gating.serving.gguf.architectures:find_architecture",
    "onnx-genai": "gating.serving.genai.genai_export:check_genai",
    "openvino": "gating.serving.openvino.openvino_export:check_openvino",
    "vllm": "gating.serving.vllm:check_vllm",
}


def reason_against(format: str, model: PreTrainedModel) -> str:
    """Return the reason for which a runtime does not run a model, as a sentence; an empty one if it does."""
    module, _, function = _CHECKS[format].partition(":")
    try:
        getattr(importlib.import_module(module), function)(model)
    except InputError as error:
        return str(error)
    return ""


def check_supported(format: str, model: PreTrainedModel) -> None:
    """Check that the runtime of a format runs a model.

    Raises:
        ValueError: It does not; the message names the reason and the formats that take the model.
    """
    if reason := reason_against(format, model):
        others = [other for other in _CHECKS if other != format and not reason_against(other, model)]
        *names, last = [*others, "onnx"]
        listed = f"{', '.join(names)} or {last}" if names else last
        raise InputError(f"{reason} Another format takes it: {listed}.")


@contextmanager
def reporting_failure(model: PreTrainedModel, target: str) -> Iterator[None]:
    """Turn errors of an exporter or runtime into one sentence with the target; those of users and files stay."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (UserError, OSError)):
            raise
        reason = f"{type(error).__name__}: {shorten(explain(error).rstrip('.'), most=300)}"
        raise OperationError(
            f"{type(model).__name__} cannot be exported to {target} ({reason}). Nothing was written."
        ) from error
