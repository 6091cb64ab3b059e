"""Attention classes of decoders, and of the encoders that are built like them."""

from torch import nn

from .spec import AttentionSpec, RowLayout, SpecOrChoice

__all__ = ["DECODERS", "Q_K_V_PROJ"]

Q_K_V_PROJ: tuple[tuple[str, RowLayout], ...] = (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"))
_FUSED = "query_key_value"
# Textual copies of one another as far as heads go.
_LLAMA_LIKE = (
    "Llama|Mistral|Mixtral|Ministral3?|Qwen2|Qwen2Moe|Qwen3|Qwen3Moe|Gemma|Gemma2|Gemma3|VaultGemma|EuroBert|NomicBert|"
    "Granite|GraniteMoe|GraniteMoeShared|Starcoder2|Olmo|Cohere2|Glm|Glm4|Helium|SmolLM3|Arcee|Apertus|Ernie4_5|"
    "Exaone4|SeedOss|Nemotron|Phimoe|HunYuanDenseV1|JinaEmbeddingsV3"
)


def _gpt2(module: nn.Module) -> AttentionSpec:
    """Cross-attention takes its queries from another layer than its keys and values."""
    is_cross_attention = bool(getattr(module, "is_cross_attention", False))
    return AttentionSpec(
        (("q_attn", "q"), ("c_attn", "kv")) if is_cross_attention else (("c_attn", "qkv"),),
        "c_proj",
        head_widths=("split_size",),
        is_cross_attention=is_cross_attention,
    )


def _falcon(module: nn.Module) -> AttentionSpec:
    """Three generations of one class; ALiBi's slopes depend on the original number of a head."""
    layout: RowLayout = "hqkv"
    if getattr(module, "new_decoder_architecture", False):
        layout = "gqkv"
    elif getattr(module, "multi_query", False):
        layout = "qkv"
    has_alibi = bool(getattr(getattr(module, "config", None), "alibi", False))
    return AttentionSpec(
        ((_FUSED, layout),),
        "dense",
        per_head_inputs=(("alibi", 1), ("attention_mask", 1)) if has_alibi else (),
    )


DECODERS: dict[str, SpecOrChoice] = {
    f"({_LLAMA_LIKE})Attention": AttentionSpec(Q_K_V_PROJ, "o_proj"),
    "GPT2Attention": _gpt2,
    "GPTNeoXAttention": AttentionSpec(((_FUSED, "hqkv"),), "dense", head_dim="head_size"),
    "(OPT|GPTJ|BioGpt)Attention": AttentionSpec(Q_K_V_PROJ, "out_proj"),
    "GPTBigCodeAttention": AttentionSpec((("c_attn", "qkv"),), "c_proj", head_widths=("embed_dim",)),
    "PersimmonAttention": AttentionSpec(((_FUSED, "hqkv"),), "dense"),
    "ModernBertDecoderAttention": AttentionSpec(Q_K_V_PROJ, "Wo"),
    "XGLMAttention": AttentionSpec(Q_K_V_PROJ, "out_proj", head_widths=("embed_dim",)),
    "PhiAttention": AttentionSpec(Q_K_V_PROJ, "dense"),
    "Phi3Attention": AttentionSpec((("qkv_proj", "qkv"),), "o_proj", config_counts=("num_attention_heads",)),
    "FalconAttention": _falcon,
    "GptOssAttention": AttentionSpec(Q_K_V_PROJ, "o_proj", per_head=(("sinks", 0),)),
    "CohereAttention": AttentionSpec(
        Q_K_V_PROJ,
        "o_proj",
        per_head=(("q_norm.weight", 0),),
        per_key_value_head=(("k_norm.weight", 0),),
    ),
}
