"""Rows of the tables of layouts, and their parts."""

import re
from collections.abc import Callable
from typing import Any

from torch import nn

from gating.errors import InputError
from gating.families.layouts import RETURNS, AttentionSpec, RowLayout

__all__ = ["Q_K_V", "Q_K_V_PROJ", "QUERY_KEY_VALUE", "Projections", "Row", "check_row", "context_spec"]


# Of a class whose layout depends on the configuration, a function returns the spec of a module; None for a module of
# another class of the same name.
Row = AttentionSpec | Callable[[nn.Module], AttentionSpec | None]
Projections = tuple[tuple[str, RowLayout], ...]

Q_K_V: Projections = (("q", "q"), ("k", "k"), ("v", "v"))
Q_K_V_PROJ: Projections = (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"))
QUERY_KEY_VALUE: Projections = (("query", "q"), ("key", "k"), ("value", "v"))


def context_spec(
    projections: Projections = QUERY_KEY_VALUE,
    *,
    is_cross_attention: bool = False,
    per_head: tuple[tuple[str, int], ...] = (),
    per_head_inputs: tuple[tuple[str, int], ...] = (),
) -> AttentionSpec:
    """Return the spec of attention with the output projection in a sibling module, as in BERT."""
    return AttentionSpec(
        projections,
        "^output.dense",
        head_dim="attention_head_size",
        returns="context",
        is_cross_attention=is_cross_attention,
        per_head=per_head,
        per_head_inputs=per_head_inputs,
    )


def check_row(class_name: Any, projections: Any, *, returns: Any = "pair") -> None:
    """Raise ``InputError`` for a row of a registry whose pattern, pairs or return value cannot be read."""
    if returns not in RETURNS:
        raise InputError(f"returns={returns!r} must be one of {', '.join(RETURNS)}.")
    try:
        re.compile(class_name)
    except (re.error, TypeError):
        raise InputError(
            f"class_name={class_name!r} is neither the name of a class nor a regular expression for such names."
        ) from None
    is_list = isinstance(projections, (tuple, list))
    if not (is_list and all(isinstance(pair, tuple) and len(pair) == 2 for pair in projections)):
        raise InputError(
            f"The projections {projections!r} of the spec for {class_name} are no pairs of a path and a layout: give "
            "AttentionSpec or FeedForwardSpec with pairs such as ('q_proj', 'q') or ('fc1', 'plain')."
        )
