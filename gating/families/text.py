"""Attention classes of text models: with layouts of their own, such as those of long texts and documents, too."""

from dataclasses import replace
from typing import Any

from torch import nn

from gating.families.layouts import (
    BY_COUNT,
    CONTEXT,
    Q_K_V,
    Q_K_V_PROJ,
    QUERY_KEY_VALUE,
    AttentionSpec,
    Projections,
    Row,
    RowLayout,
    has_variable,
)
from gating.loader.forwards import fsmt_forward, led_forward, longformer_forward

_LATENT_LIKE = (
    "(DeepseekV2|DeepseekV3|DeepseekV32|Youtu|Glm4MoeLite|MiniCPM3|AXK1|AXK2|KimiLinear|BailingHybrid|Mistral4)"
)


def _deberta(module: nn.Module) -> AttentionSpec:
    """Return the spec for the first or second DeBERTa; its projections of positions have rows for each head, too."""
    first: Projections = (("in_proj", "hqkv"), ("pos_proj", "k"), ("pos_q_proj", "q"))
    second: Projections = (("query_proj", "q"), ("key_proj", "k"), ("value_proj", "v"))
    second += (("pos_key_proj", "k"), ("pos_query_proj", "q"))
    projections = first if hasattr(module, "in_proj") else second
    spec = replace(CONTEXT, projections=projections, per_head=(("q_bias", 0), ("v_bias", 0)))
    # The class of SEW-D has the same name; in older versions, it returns its features alone.
    is_alone = ".sew_d." in type(module).__module__ and has_variable(module, "output_attentions")
    return replace(spec, returns="other") if is_alone else spec


def _gpt2(module: nn.Module) -> AttentionSpec:
    """Return the spec for self-attention, or for cross-attention, whose queries have a projection of their own."""
    is_cross_attention = bool(getattr(module, "is_cross_attention", False))
    return AttentionSpec(
        (("q_attn", "q"), ("c_attn", "kv")) if is_cross_attention else (("c_attn", "qkv"),),
        "c_proj",
        head_widths=("split_size",),
        is_cross_attention=is_cross_attention,
    )


def _gpt_bigcode(module: nn.Module) -> AttentionSpec:
    """Return the spec with one head of keys and values for all, or with one for each head of queries."""
    layout: RowLayout = "qkv" if getattr(module, "multi_query", True) else "hqkv"
    return AttentionSpec((("c_attn", layout),), "c_proj", head_widths=("embed_dim",))


def _falcon(module: nn.Module) -> AttentionSpec:
    """Return the spec for one of three layouts; ALiBi's slopes depend on the original number of a head."""
    layout: RowLayout = "hqkv"
    if getattr(module, "new_decoder_architecture", False):
        layout = "gqkv"
    elif getattr(module, "multi_query", False):
        layout = "qkv"
    has_alibi = bool(getattr(getattr(module, "config", None), "alibi", False))
    # In transformers 5.0, one dimension is that of batch and heads.
    alibi_dim = 0 if has_variable(module, "cache_position") else 1
    per_head_inputs = (("alibi", alibi_dim), ("attention_mask", 1)) if has_alibi else ()
    return AttentionSpec((("query_key_value", layout),), "dense", per_head_inputs=per_head_inputs)


_LATENT_PROJECTIONS: Projections = (
    ("q_proj", "q"),
    ("q_b_proj", "q"),
    ("q_gate_proj", "q"),
    ("kv_b_proj", "hkv"),
    # Gates of the outputs, with one row or one for each feature of a head.
    ("g_proj", "q"),
    ("gate_proj", "q"),
)
# Keys and values of all heads come from one latent, which stays whole: it is what decoders cache.
_LATENT = AttentionSpec(
    _LATENT_PROJECTIONS, "o_proj", head_dim="v_head_dim", key_dim="qk_head_dim", per_head=(("sinks", 0),)
)
_T5 = AttentionSpec(Q_K_V, "o", head_dim="key_value_proj_dim", head_widths=("inner_dim",))
_PIX2STRUCT = replace(_T5, projections=QUERY_KEY_VALUE, output_projection="output")
TEXT_FAMILIES: dict[str, Row] = {
    "DistilBertSelfAttention": AttentionSpec(
        (("q_lin", "q"), ("k_lin", "k"), ("v_lin", "v")), "out_lin", head_dim="attention_head_size"
    ),
    # One module serves many layers. The residual and its norm are inside.
    "AlbertAttention": AttentionSpec(QUERY_KEY_VALUE, "dense", head_dim="attention_head_size", returns="other"),
    "DisentangledSelfAttention": _deberta,
    # One table of biases serves all layers.
    "MPNetSelfAttention": AttentionSpec(
        Q_K_V, "o", head_dim="attention_head_size", returns="other", per_head_inputs=(("position_bias", 1),)
    ),
    "ModernBertAttention": AttentionSpec((("Wqkv", "qkv"),), "Wo"),
    "GPT2Attention": _gpt2,
    "(DecisionTransformerGPT2|ImageGPT)Attention": AttentionSpec(
        (("c_attn", "qkv"),), "c_proj", head_widths=("split_size",)
    ),
    "GPTNeoXAttention": AttentionSpec((("query_key_value", "hqkv"),), "dense", head_dim="head_size"),
    "GPTNeoXJapaneseAttention": AttentionSpec(
        (("query_key_value", "hqkv"),), "dense", head_dim="head_size", returns="other"
    ),
    "GPTBigCodeAttention": _gpt_bigcode,
    "PersimmonAttention": AttentionSpec((("query_key_value", "hqkv"),), "dense"),
    "ModernBertDecoderAttention": AttentionSpec(Q_K_V_PROJ, "Wo"),
    "PhiAttention": AttentionSpec(Q_K_V_PROJ, "dense"),
    "(Phi3|Phi4Multimodal)Attention": AttentionSpec(
        (("qkv_proj", "qkv"),), "o_proj", config_counts=("num_attention_heads",)
    ),
    "FalconAttention": _falcon,
    # In older versions.
    "RecurrentGemmaSdpaAttention": AttentionSpec(Q_K_V_PROJ, "o_proj", returns="tensor", head_widths=("hidden_size",)),
    "(GptOss|OpenAIPrivacyFilter|Flint|GraniteSWA|GraniteMoeSWA)Attention": AttentionSpec(
        Q_K_V_PROJ, "o_proj", per_head=(("sinks", 0),)
    ),
    # The outputs of a head are gated by rows of their own, one for each feature or one for all.
    "(Afmoe|Beam|MuseSparkText|MuseGlimmerText)Attention": AttentionSpec(
        (*Q_K_V_PROJ, ("gate_proj", "q")), "o_proj", per_head=(("gate_bias", 0),)
    ),
    "(Laguna|Lfm3)Attention": AttentionSpec((*Q_K_V_PROJ, ("g_proj", "q")), "o_proj"),
    "MiMoV2FlashAttention": AttentionSpec(
        Q_K_V_PROJ, "o_proj", head_dim="v_head_dim", key_dim="head_dim", per_head=(("sinks", 0),)
    ),
    "CohereAttention": AttentionSpec(
        Q_K_V_PROJ, "o_proj", per_head=(("q_norm.weight", 0),), per_key_value_head=(("k_norm.weight", 0),)
    ),
    f"{_LATENT_LIKE}Attention": _LATENT,
    "LongcatFlashMLA": _LATENT,
    # Layers pass on which keys they have chosen, so that none can go without a head.
    "(GlmMoeDsa|HYV4|HYV4VL|Glm5NextText|MistralLarge4Text)Attention": AttentionSpec(
        _LATENT_PROJECTIONS,
        "o_proj",
        head_dim="v_head_dim",
        returns="other",
        key_dim="qk_head_dim",
        per_head=(("sinks", 0), ("softmax_scaling.scale", 0), ("softmax_scaling.bias", 0)),
    ),
    # Linear attention. Each key head serves a group of heads, and the state of a head is normalized and gated for
    # itself.
    "(Qwen3Next|Qwen3_5|Qwen3_5Moe)GatedDeltaNet": AttentionSpec(
        (
            ("in_proj_qkvz", "gkkqq"),
            ("in_proj_ba", "gqq"),
            ("in_proj_qkv", "kkq"),
            ("in_proj_z", "q"),
            ("in_proj_b", "q"),
            ("in_proj_a", "q"),
            ("conv1d", "kkq"),
        ),
        "out_proj",
        head_dim="head_v_dim",
        returns="tensor",
        head_counts=("num_v_heads",),
        head_widths=("value_dim",),
        per_head=(("A_log", 0), ("dt_bias", 0)),
        key_dim="head_k_dim",
        key_widths=("key_dim",),
        has_state=True,
    ),
    # One table of position biases, in the first layer, serves a whole stack.
    "(M?T5|LongT5|SwitchTransformers|Udop|Pop2Piano)Attention": replace(_T5, returns="other", shares_bias=True),
    "Pix2StructTextAttention": replace(_PIX2STRUCT, returns="other", shares_bias=True),
    "Pix2StructVisionAttention": _PIX2STRUCT,
    "UMT5Attention": replace(_T5, per_head=(("relative_attention_bias.weight", 1),)),
}


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
        return AttentionSpec(
            (("c_attn", "qkv"),),
            "c_proj",
            head_dim=BY_COUNT,
            returns="other",
            head_counts=("n_head",),
            head_widths=("split_size",),
        )
    if model == "ctrl":
        spec = AttentionSpec((("Wq", "q"), ("Wk", "k"), ("Wv", "v")), "dense")
        # Older versions have other attributes.
        return replace(spec, head_dim="depth", head_widths=("d_model_size",)) if hasattr(module, "depth") else spec
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
    "BigBirdPegasusSelfAttention": replace(CONTEXT, output_projection="^output"),
    "BloomAttention": _bloom,
    "MptAttention": AttentionSpec((("Wqkv", "qkv"),), "out_proj", per_head_inputs=(("position_bias", 0),)),
    # In older versions, the number of its parts is no attribute.
    "CodeGenAttention": lambda module: (
        AttentionSpec((("qkv_proj", "pqvk"),), "out_proj", head_widths=("embed_dim",))
        if hasattr(module, "mp_num")
        else None
    ),
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
    "(LayoutLMv3|PPDocLayoutV2ReadingOrder)SelfAttention": replace(
        CONTEXT,
        # The latter two are those of older versions.
        per_head_inputs=(("position_bias", 1), ("rel_pos", 1), ("rel_2d_pos", 1)),
    ),
    "LayoutLMv2SelfAttention": replace(
        CONTEXT,
        projections=(*QUERY_KEY_VALUE, ("qkv_linear", "qkv")),
        per_head=(("q_bias", 2), ("v_bias", 2)),
        per_head_inputs=(("rel_pos", 1), ("rel_2d_pos", 1)),
    ),
    # Texts and their layout attend by the sum of their scores; heads of the layout are narrower.
    "LiltSelfAttention": replace(
        CONTEXT,
        projections=(*QUERY_KEY_VALUE, ("layout_query", "q"), ("layout_key", "k"), ("layout_value", "v")),
        returns="other",
        other_outputs=("^layout_output.dense",),
    ),
    "FunnelRelMultiheadAttention": _funnel,
}
