"""The families of the first tier have every layout of the tables."""

from collections.abc import Iterator
from typing import get_args

import pytest
from transformers import PreTrainedModel

import gating
from gating.structure import attention_spec, families
from gating.structure.attention_spec import AttentionSpec
from gating.structure.feed_forward_specs import UpLayout
from tests.support import family_models, multimodal_models, single_models
from tests.support.tiers import REPRESENTATIVES

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.filterwarnings("ignore:.*get no gates")]


def representative_models() -> Iterator[PreTrainedModel]:
    for name in sorted(REPRESENTATIVES):
        if name in family_models.FAMILIES:
            yield family_models.FAMILIES[name].build()
        else:
            yield (multimodal_models if name in multimodal_models.NAMES else single_models).build(name)


def forms_of(spec: AttentionSpec) -> set[tuple[str, str]]:
    """Return the return form of a spec, and which projections it borrows; of its layouts, a model need not have all."""
    return {("returns", spec.returns), ("borrowed", spec.borrowed)}


def test_representatives_have_every_row_layout_return_form_and_borrowed_projection():
    found: set[tuple[str, str]] = set()
    for model in representative_models():
        for block in gating.find_attention_blocks(model):
            found |= forms_of(block.spec)
            found |= {("rows", layout) for path, layout in block.spec.projections if block.has(path)}
    expected = {("rows", layout) for layout in get_args(attention_spec.RowLayout)}
    expected |= {("returns", form) for form in get_args(attention_spec.Returns)}
    expected |= {("borrowed", which) for which in ("", "v", "kv")}
    # Rows of the tables, too, or a form that only a table names would be of nobody.
    for row in families._SHIPPED.values():
        if isinstance(row, AttentionSpec):
            expected |= forms_of(row) | {("rows", layout) for _, layout in row.projections}
    assert expected - found == set()


def test_representatives_have_every_layout_of_up_projections():
    layouts = set()
    for name in ("bert", "phi3", "gpt_oss"):
        assert name in REPRESENTATIVES
        blocks = gating.find_feed_forward_blocks(family_models.FAMILIES[name].build())
        layouts |= {layout for block in blocks for _, layout in block.spec.ups}
    assert layouts == set(get_args(UpLayout))


def test_representatives_are_few_and_have_names_of_families():
    names = {*family_models.FAMILIES, *multimodal_models.NAMES, *single_models.NAMES}
    assert names >= REPRESENTATIVES
    assert len(REPRESENTATIVES) <= 25
