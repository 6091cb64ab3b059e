"""Attention classes of text encoders."""

from torch import nn

from .spec import AttentionSpec, RowLayout, SpecOrChoice

__all__ = ["QUERY_KEY_VALUE", "TEXT_ENCODERS"]

QUERY_KEY_VALUE: tuple[tuple[str, RowLayout], ...] = (("query", "q"), ("key", "k"), ("value", "v"))
_BERT_LIKE = (
    "(Bert|Roberta|XLMRoberta|Camembert|Electra|BertGeneration|Data2VecText|Ernie|LayoutLM|MarkupLM|MegatronBert|"
    "RemBert|RobertaPreLayerNorm|Splinter|VisualBert|XLMRobertaXL|Esm)"
)


def _bert(*, is_cross_attention: bool) -> AttentionSpec:
    """BERT and its textual copies: the output projection stands in a sibling module."""
    return AttentionSpec(
        QUERY_KEY_VALUE,
        "^output.dense",
        head_dim="attention_head_size",
        returns="context",
        is_cross_attention=is_cross_attention,
    )


def _deberta(module: nn.Module) -> AttentionSpec:
    """Two generations of one class. The projections of positions follow the heads of what they are multiplied with."""
    is_first = hasattr(module, "in_proj")
    first: tuple[tuple[str, RowLayout], ...] = (("in_proj", "hqkv"), ("pos_proj", "k"), ("pos_q_proj", "q"))
    second: tuple[tuple[str, RowLayout], ...] = (
        ("query_proj", "q"),
        ("key_proj", "k"),
        ("value_proj", "v"),
        ("pos_key_proj", "k"),
        ("pos_query_proj", "q"),
    )
    return AttentionSpec(
        first if is_first else second,
        "^output.dense",
        head_dim="attention_head_size",
        returns="context",
        per_head=(("q_bias", 0), ("v_bias", 0)),
    )


TEXT_ENCODERS: dict[str, SpecOrChoice] = {
    f"{_BERT_LIKE}SelfAttention": _bert(is_cross_attention=False),
    f"{_BERT_LIKE}CrossAttention": _bert(is_cross_attention=True),
    "DistilBertSelfAttention": AttentionSpec(
        (("q_lin", "q"), ("k_lin", "k"), ("v_lin", "v")), "out_lin", head_dim="attention_head_size"
    ),
    # One module serves many layers. The residual and its norm are inside.
    "AlbertAttention": AttentionSpec(QUERY_KEY_VALUE, "dense", head_dim="attention_head_size", returns="albert"),
    "DisentangledSelfAttention": _deberta,
    # One table of biases serves all layers.
    "MPNetSelfAttention": AttentionSpec(
        (("q", "q"), ("k", "k"), ("v", "v")),
        "o",
        head_dim="attention_head_size",
        returns="mpnet",
        per_head_inputs=(("position_bias", 1),),
    ),
    "ModernBertAttention": AttentionSpec((("Wqkv", "qkv"),), "Wo"),
}
