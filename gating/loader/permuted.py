"""Saving of models whose checkpoints have the rows of each head in another order than the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import conversion_mapping

from .classes import MIXINS

__all__ = ["RowsInPlace", "permutes_rows"]


@contextmanager
def rows_in_place(model: Any) -> Iterator[None]:
    """Leave out of a model's conversions, in a ``with`` block, those that permute the rows of each head.

    On saving and loading, transformers would take the number of heads from the configuration, which is that of the
    dense model. Under the names of the model class, these weights are loaded as they are.
    """
    before = getattr(model, "_weight_conversions", None)
    # Those of a model that was not loaded are all but prefixes, as in transformers.
    known = conversion_mapping.get_model_conversion_mapping(model, add_legacy=False)
    found = before if before is not None else [one for one in known if type(one).__name__ != "PrefixChange"]
    kept = [conversion for conversion in found if not permutes_rows(conversion)]
    if len(kept) < len(found):
        model._weight_conversions = kept
    try:
        yield
    finally:
        model._weight_conversions = before


def permutes_rows(conversion: Any) -> bool:
    """Return whether a conversion of transformers permutes rows of heads."""
    # Operations are told by their names: versions of transformers have several, or none.
    return any("PermuteForRope" in type(operation).__name__ for operation in getattr(conversion, "operations", ()))


class RowsInPlace:
    """Methods of a compact model whose rows stay in the order of the model when it is saved."""

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save a model as transformers does."""
        with rows_in_place(self):
            super().save_pretrained(*args, **kwargs)  # type: ignore[misc]


MIXINS.append(RowsInPlace)
