"""The families of the first tier have every layout of the tables."""

from typing import get_args, get_type_hints

import pytest

import gating
from gating import AttentionSpec, FeedForwardSpec
from gating.families import registry as families
from gating.loader.parts import FORMS
from tests.support.family_models import ZOO
from tests.support.tiers import REPRESENTATIVES

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.filterwarnings("ignore:.*get no gates")]


def layouts_of(pairs: object) -> set[str]:
    """Return the layouts in the type of pairs of a path and a layout."""
    _, layout = get_args(get_args(pairs)[0])
    return set(get_args(layout))


def forms_of(spec: AttentionSpec) -> set[tuple[str, str]]:
    """Return the return form of a spec, and which projections it borrows; of its layouts, a model need not have all."""
    return {("returns", spec.returns), ("borrowed", spec.borrowed)}


def test_representatives_have_every_row_layout_return_form_and_borrowed_projection():
    found: set[tuple[str, str]] = set()
    for name in sorted(REPRESENTATIVES):
        for block in gating.find_attention_blocks(ZOO[name].build()):
            found |= forms_of(block.spec)
            found |= {("rows", layout) for path, layout in block.spec.projections if block.has(path)}
    types = get_type_hints(AttentionSpec)
    expected = {("rows", layout) for layout in layouts_of(types["projections"])}
    expected |= {("returns", form) for form in (*FORMS, "other")}
    expected |= {("borrowed", which) for which in get_args(types["borrowed"])}
    # Rows of the tables, too, or a form that only a table names would be of nobody.
    for row in families._SHIPPED.values():
        if isinstance(row, AttentionSpec):
            expected |= forms_of(row) | {("rows", layout) for _, layout in row.projections}
    assert expected - found == set()


def test_representatives_have_every_layout_of_up_projections():
    layouts = set()
    for name in ("bert", "phi3", "gpt_oss"):
        assert name in REPRESENTATIVES
        blocks = gating.find_feed_forward_blocks(ZOO[name].build())
        layouts |= {layout for block in blocks for _, layout in block.spec.ups}
    assert layouts == layouts_of(get_type_hints(FeedForwardSpec)["ups"])


def test_representatives_are_few_and_have_names_of_families():
    assert ZOO.keys() >= REPRESENTATIVES
    assert len(REPRESENTATIVES) <= 25
