"""Refused models with the formats that take them, and failures of exporters, as sentences."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from transformers import PreTrainedModel

from gating.errors import InputError, OperationError, UserError, explain, shorten

__all__ = ["CHECKS", "naming_alternatives", "reason_against", "reporting_failure"]

# By format, the function that raises for models that its runtime does not run. Those are imported when they are used:
# exporters import this module.
CHECKS: Mapping[str, str] = {
    "gguf": "gating.serving.gguf.architectures:find_architecture",
    "onnx-genai": "gating.serving.genai.export:check_genai",
    "openvino": "gating.serving.openvino.export:check_openvino",
    "vllm": "gating.serving.vllm:check_vllm",
}


def reason_against(format: str, model: PreTrainedModel) -> str:
    """Return the reason for which a runtime does not run a model, as a sentence; an empty one if it does.

    Args:
        format: A format of :data:`CHECKS`.
        model: The model.
    """
    module, _, function = CHECKS[format].partition(":")
    try:
        getattr(importlib.import_module(module), function)(model)
    except InputError as error:
        return str(error)
    return ""


@contextmanager
def naming_alternatives(format: str, model: PreTrainedModel) -> Iterator[None]:
    """Add the formats that take a model to the error of a ``with`` block that refuses it.

    Args:
        format: The format that the model is refused for.
        model: The model.
    """
    try:
        yield
    except InputError as error:
        others = [other for other in CHECKS if other != format and not reason_against(other, model)]
        *names, last = [*others, "onnx"]
        listed = f"{', '.join(names)} or {last}" if names else last
        raise InputError(f"{error} Another format takes it: {listed}.") from error


@contextmanager
def reporting_failure(model: PreTrainedModel, target: str) -> Iterator[None]:
    """Turn any error of an exporter or a runtime into one sentence; those of users and of the system stay.

    Args:
        model: The model.
        target: Format or runtime, for the message.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (UserError, OSError)):
            raise
        reason = f"{type(error).__name__}: {shorten(explain(error).rstrip('.'), most=300)}"
        raise OperationError(
            f"{type(model).__name__} cannot be exported to {target} ({reason}). Nothing was written."
        ) from error
