"""Attention classes of encoder-decoder models."""

from .decoders import Q_K_V_PROJ
from .spec import AttentionSpec, RowLayout, SpecOrChoice

__all__ = ["ENCODER_DECODERS"]

_Q_K_V: tuple[tuple[str, RowLayout], ...] = (("q", "q"), ("k", "k"), ("v", "v"))

ENCODER_DECODERS: dict[str, SpecOrChoice] = {
    # One table of position biases, in the first layer, serves a whole stack.
    "M?T5Attention": AttentionSpec(
        _Q_K_V, "o", head_dim="key_value_proj_dim", head_widths=("inner_dim",), returns="t5"
    ),
    "UMT5Attention": AttentionSpec(
        _Q_K_V,
        "o",
        head_dim="key_value_proj_dim",
        head_widths=("inner_dim",),
        per_head=(("relative_attention_bias.weight", 1),),
    ),
    "(Bart|Marian|MBart|Whisper|Pegasus|Blenderbot|BlenderbotSmall|M2M100|NllbMoe|PLBart)Attention": AttentionSpec(
        Q_K_V_PROJ, "out_proj"
    ),
    "T5Gemma(Self|Cross)Attention": AttentionSpec(Q_K_V_PROJ, "o_proj"),
    "MvpAttention": AttentionSpec(Q_K_V_PROJ, "out_proj", head_widths=("embed_dim",)),
}
