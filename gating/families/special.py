"""Attention classes of text models with layouts of their own: long texts, early decoders, documents."""

from typing import Any

from gating.families.layouts import Q_K_V_PROJ, QUERY_KEY_VALUE, AttentionSpec, Projections, Row
from gating.families.linear import num_outputs
from gating.loader.forwards_texts import fsmt_forward, led_forward, longformer_forward

__all__ = ["SPECIAL_FAMILIES"]


def _bloom(module: Any) -> AttentionSpec | None:
    """Return the spec for BLOOM; None where its code slices the weight of the output projection."""
    if module.pretraining_tp > 1 and module.slow_but_exact:
        return None
    return AttentionSpec((("query_key_value", "hqkv"),), "dense", returns="other", per_head_inputs=(("alibi", 0),))


def _moshi(module: Any) -> AttentionSpec | None:
    """Return the spec for Moshi; None for its decoder of codebooks, whose layers have a weight for each of them."""
    if getattr(module.o_proj, "use_flexible_linear", False):
        return None
    return AttentionSpec((("q_proj.linear", "q"), ("k_proj.linear", "k"), ("v_proj.linear", "v")), "o_proj.linear")


def _funnel(module: Any) -> AttentionSpec:
    """Return the spec for Funnel, where only the configuration has the width of a head."""
    return AttentionSpec(
        (("q_head", "q"), ("k_head", "k"), ("v_head", "v")),
        "post_proj",
        head_dim=int(module.config.d_head),
        returns="other",
        per_head=(("r_w_bias", 0), ("r_r_bias", 0), ("r_kernel", 1), ("r_s_bias", 0), ("seg_embed", 1)),
        config_counts=("n_head",),
    )


def _short_name(module: Any) -> AttentionSpec | None:
    """Return the spec for a class of transformers with a name that many packages use."""
    model = type(module).__module__.removeprefix("transformers.models.").partition(".")[0]
    if model == "openai":
        width = num_outputs(module.c_proj) // getattr(module, "num_heads_before", module.n_head)
        return AttentionSpec(
            (("c_attn", "qkv"),),
            "c_proj",
            head_dim=int(width),
            returns="other",
            head_counts=("n_head",),
            head_widths=("split_size",),
        )
    if model == "ctrl":
        return AttentionSpec((("Wq", "q"), ("Wk", "k"), ("Wv", "v")), "dense")
    if model == "fsmt":
        return AttentionSpec(Q_K_V_PROJ, "out_proj", returns="other", forward=fsmt_forward)
    if model in ("xlm", "flaubert"):
        return AttentionSpec((("q_lin", "q"), ("k_lin", "k"), ("v_lin", "v")), "out_lin", returns="other")
    return None


_GLOBAL: Projections = (("query_global", "q"), ("key_global", "k"), ("value_global", "v"))
_WINDOWED: Projections = (*QUERY_KEY_VALUE, *_GLOBAL)
SPECIAL_FAMILIES: dict[str, Row] = {
    "LongformerSelfAttention": AttentionSpec(_WINDOWED, "^output.dense", returns="other", forward=longformer_forward),
    "LEDEncoderSelfAttention": AttentionSpec(_WINDOWED, "^output", returns="other", forward=longformer_forward),
    "LEDDecoderAttention": AttentionSpec(Q_K_V_PROJ, "out_proj", returns="other", forward=led_forward),
    "BigBirdPegasusSelfAttention": AttentionSpec(
        QUERY_KEY_VALUE, "^output", head_dim="attention_head_size", returns="context"
    ),
    "BloomAttention": _bloom,
    "MptAttention": AttentionSpec((("Wqkv", "qkv"),), "out_proj", per_head_inputs=(("position_bias", 0),)),
    "CodeGenAttention": AttentionSpec((("qkv_proj", "pqvk"),), "out_proj", head_widths=("embed_dim",)),
    "StableLmAttention": AttentionSpec(
        Q_K_V_PROJ,
        "o_proj",
        per_head=(("q_layernorm.norms", 0),),
        per_key_value_head=(("k_layernorm.norms", 0),),
    ),
    "(Moshi|KyutaiSpeechToText)Attention": _moshi,
    "CpmAntAttention": AttentionSpec(
        (("project_q", "q"), ("project_k", "k"), ("project_v", "v")),
        "attention_out",
        head_dim="dim_head",
        per_head_inputs=(("position_bias", 1),),
    ),
    "(Attention|MultiHeadAttention)": _short_name,
    # The positions of the model's table serve all layers.
    "(LayoutLMv3|PPDocLayoutV2ReadingOrder)SelfAttention": AttentionSpec(
        QUERY_KEY_VALUE,
        "^output.dense",
        head_dim="attention_head_size",
        returns="context",
        per_head_inputs=(("position_bias", 1),),
    ),
    "LayoutLMv2SelfAttention": AttentionSpec(
        (*QUERY_KEY_VALUE, ("qkv_linear", "qkv")),
        "^output.dense",
        head_dim="attention_head_size",
        returns="context",
        per_head=(("q_bias", 2), ("v_bias", 2)),
        per_head_inputs=(("rel_pos", 1), ("rel_2d_pos", 1)),
    ),
    # Texts and their layout attend by the sum of their scores; heads of the layout are narrower.
    "LiltSelfAttention": AttentionSpec(
        (*QUERY_KEY_VALUE, ("layout_query", "q"), ("layout_key", "k"), ("layout_value", "v")),
        "^output.dense",
        head_dim="attention_head_size",
        returns="other",
        other_outputs=("^layout_output.dense",),
    ),
    "FunnelRelMultiheadAttention": _funnel,
}
