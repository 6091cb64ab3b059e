"""Bad input drawn by hypothesis, and its outcome.

Every area draws cases and tries them. A try ends in a result, which it checks itself, or in an error that is one
sentence for a user; anything else fails. The tests try a few cases of each area.
"""

from hypothesis import strategies as st

from tests.support.bad_input.cases import Area, outcome
from tests.support.bad_input.commands import (
    HOWS,
    MODEL_FILES,
    MODEL_VALUES,
    overrides,
    sizes,
    try_model,
    try_overrides,
    try_sizes,
)
from tests.support.bad_input.heads import BUDGET, HEAD, LAYER, MASK, try_budget, try_mask, try_pattern
from tests.support.bad_input.tables import (
    LABEL,
    malformed_files,
    texts,
    try_file,
    try_labels,
    try_texts,
    try_types,
    typed_tables,
)

__all__ = ["AREAS", "Area", "outcome"]

AREAS: dict[str, Area] = {
    "columns of unusual types": Area(typed_tables(), try_types),
    "malformed files, other encodings": Area(malformed_files(), try_file),
    "label sets": Area(
        st.tuples(st.lists(LABEL, min_size=1, max_size=5), st.lists(LABEL, min_size=1, max_size=2)), try_labels
    ),
    "texts and their length": Area(texts(), try_texts),
    "sizes of data and batches, whole runs": Area(sizes(), try_sizes, cost=3),
    "budgets": Area(
        st.fixed_dictionaries(
            {"num_heads": BUDGET, "keep": BUDGET, "min_per_layer": st.sampled_from([0, 0, 1, 4, 5, -1])}
        ),
        try_budget,
    ),
    "patterns of heads": Area(
        st.tuples(
            st.sampled_from(["bert", "llama", "t5"]), st.dictionaries(LAYER, st.lists(HEAD, max_size=4), max_size=3)
        ),
        try_pattern,
    ),
    "masks": Area(
        st.tuples(MASK, st.sampled_from(["mask", "mask", 1, 4, 12, 0, 13, -1, 1.5, True, None]), st.integers(0, 3)),
        try_mask,
    ),
    "settings on the command line": Area(overrides(), try_overrides),
    "folders of models": Area(
        st.tuples(
            st.sampled_from(MODEL_FILES), st.sampled_from(HOWS), st.floats(0, 0.99), st.sampled_from(MODEL_VALUES)
        ),
        try_model,
    ),
}
