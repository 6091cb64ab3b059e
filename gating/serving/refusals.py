"""Refused models with the formats that take them, and failures of exporters, as sentences."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

from gating.errors import InputError, OperationError, UserError, explain, shorten
from gating.serving.formats import FORMATS

__all__ = ["check_supported", "reporting_failure"]


def check_supported(format: str, model: PreTrainedModel) -> None:
    """Check that the runtime of a format runs a model.

    Raises:
        ValueError: It does not; the message names the reason and the formats that take the model.
    """
    if reason := FORMATS[format].reason_against(model):
        others = [
            name for name, row in FORMATS.items() if row.check and name != format and not row.reason_against(model)
        ]
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
