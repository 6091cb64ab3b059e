"""The blocks of a model, in panels for the maps of a report."""

import pytest

from gating.report.layers import panels_of

TOWERS = {
    "bert": ([f"encoder.layer.{i}.attention.self" for i in range(2)], [("", ["0", "1"])]),
    "bart": (
        [f"model.{tower}.layers.0.{kind}" for tower, kind in (("encoder", "self_attn"), ("decoder", "self_attn"))]
        + ["model.decoder.layers.0.encoder_attn"],
        [("encoder", ["0"]), ("decoder · self_attn", ["0"]), ("decoder · encoder_attn", ["0"])],
    ),
    "t5": (
        [
            *(f"{block}.layer.0.SelfAttention" for block in ("encoder.block.0", "decoder.block.0", "decoder.block.1")),
            "decoder.block.0.layer.1.EncDecAttention",
        ],
        [("encoder", ["0"]), ("decoder · SelfAttention", ["0", "1"]), ("decoder · EncDecAttention", ["0"])],
    ),
    "swin": (
        [f"encoder.layers.0.blocks.{i}.attention" for i in range(2)],
        [("", ["0.0", "0.1"])],
    ),
    "odd": (["dense", "other"], [("dense", [""]), ("other", [""])]),
}


@pytest.mark.parametrize("family", TOWERS)
def test_blocks_of_one_kind_are_together(family):
    names, wanted = TOWERS[family]
    panels = panels_of([(name, [0], 2) for name in names])
    assert [(panel.title, [label for label, _ in panel.rows]) for panel in panels] == wanted
