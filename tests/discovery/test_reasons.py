"""Reasons for which attention of some classes keeps all heads."""

from typing import Any

import pytest
import transformers

from gating.discovery.find import search_attention
from gating.discovery.lookalikes import attention_lookalikes
from tests.support.single_models import DETR, RESNET, TEXT

# The model, its configuration, and the reason.
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "Nystromformer": ("Model", {**TEXT, "num_landmarks": 4, "segment_means_seq_len": 16}, "scaled by the largest sum"),
    "ConvBert": ("Model", {**TEXT, "embedding_size": 48}, "conv_kernel_layer computes the kernels of a head"),
    "Doge": ("Model", {**TEXT, "num_key_value_heads": 2}, "dt_proj computes the mask of a head"),
    "DiffLlama": ("Model", {**TEXT, "num_key_value_heads": 2}, "subtracted from the other"),
    "JetMoe": ("Model", {**TEXT, "kv_channels": 12, "num_key_value_heads": 2}, "those of experts"),
    "XLNet": ("Model", {"vocab_size": 99, "d_model": 48, "n_layer": 1, "n_head": 4, "d_inner": 40}, "not layers"),
    "Mra": ("Model", TEXT, "CUDA kernel"),
    "Levit": (
        "Model",
        {"image_size": 32, "hidden_sizes": [16, 16, 16], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1],
            "key_dim": [8, 8, 8]},
        "batch norms",
    ),
    "ProphetNet": (
        "ForConditionalGeneration",
        {"vocab_size": 99, "hidden_size": 48, "num_encoder_layers": 1, "num_decoder_layers": 1,
            "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4, "encoder_ffn_dim": 40,
            "decoder_ffn_dim": 40},
        "relative_pos_embeddings alternate",
    ),
    "Bloom": (
        "Model",
        {"vocab_size": 99, "hidden_size": 48, "n_layer": 1, "n_head": 4, "slow_but_exact": True, "pretraining_tp": 2},
        "slices of the output projection",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_the_reason_is_that_of_the_structure(name: str) -> None:
    suffix, arguments, reason = REFUSED[name]
    model = getattr(transformers, name + suffix)(getattr(transformers, f"{name}Config")(**arguments))
    ungated = attention_lookalikes(model, [], problems={}, searched=False)
    assert any(reason in its_reason for _, _, its_reason in ungated)


def test_attention_maps_for_masks_keep_their_heads() -> None:
    heads = {"encoder_attention_heads": 8, "decoder_attention_heads": 8}
    stages = {**RESNET, "out_features": ["stage1", "stage2", "stage3", "stage4"]}
    config = transformers.DetrConfig(**{**DETR, **heads, "backbone_config": stages})
    blocks, ungated = search_attention(transformers.DetrForSegmentation(config))
    assert len(blocks) == 3 * DETR["decoder_layers"]
    (maps,) = ungated
    assert "without values" in maps.reason
