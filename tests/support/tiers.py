"""The families that stand for all others in the first tier of tests, `make test`."""

from collections.abc import Iterable
from typing import Any

import pytest

__all__ = ["REPRESENTATIVES", "first_of", "tiered"]

# Together they have every row layout, return form and borrowed projection of the specs (tests/structure/test_tiers.py).
REPRESENTATIVES = frozenset(
    {"bert", "albert", "mpnet", "gpt2-cross", "llama", "phi3", "falcon-new", "falcon-rw-alibi", "t5", "bart", "vit"}
    | {"siglip", "gpt_oss", "deepseek_v3", "qwen3_next"}
    | {"gemma4-shared-values", "grounding_dino", "lilt", "led", "bloom", "codegen", "openai_gpt", "hiera", "funnel"}
)


def first_of(cases: Iterable[Any], *, every: int | None = None) -> list[Any]:
    """Return the cases of a test, all but the first one marked ``families``.

    Args:
        cases: Values, or tuples of values of several arguments.
        every: The first one of so many, and of the next as many, and so on; of all if left out.
    """
    marked = []
    for index, case in enumerate(cases):
        values = case if isinstance(case, tuple) else (case,)
        is_first = index % every == 0 if every else index == 0
        marked.append(pytest.param(*values, marks=() if is_first else pytest.mark.families))
    return marked


def tiered(cases: Iterable[Any], *, mark: str = "families") -> list[Any]:
    """Return the cases of a test of families: those of other families than the representatives marked.

    Args:
        cases: Names of families, or tuples and ``pytest.param`` that begin with one.
        mark: The mark, ``families`` or ``slow``.
    """
    marked = []
    for case in cases:
        values, marks = (case.values, case.marks) if hasattr(case, "marks") else (case, ())
        values = values if isinstance(values, tuple) else (values,)
        others = () if values[0] in REPRESENTATIVES else (getattr(pytest.mark, mark),)
        marked.append(pytest.param(*values, marks=[*marks, *others]))
    return marked
