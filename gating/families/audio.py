"""Attention classes of models of sound: encoders of speech, and classifiers of sounds."""

from torch import nn

from gating.families.rows import Q_K_V_PROJ, Projections, Row
from gating.loader.forwards_sounds import rotary_forward, wavlm_forward
from gating.loader.layouts import AttentionSpec

__all__ = ["AUDIO_FAMILIES"]


_LINEAR: Projections = (("linear_q", "q"), ("linear_k", "k"), ("linear_v", "v"), ("linear_pos", "q"))


def _conformer(module: nn.Module) -> AttentionSpec:
    """Return the spec for a conformer's attention, by its type of positions."""
    is_rotary = getattr(module, "position_embeddings_type", None) == "rotary"
    return AttentionSpec(
        _LINEAR,
        "linear_out",
        head_dim="head_size",
        per_head=(("pos_bias_u", 0), ("pos_bias_v", 0)),
        forward=rotary_forward if is_rotary else None,
    )


AUDIO_FAMILIES: dict[str, Row] = {
    "(Wav2Vec2Bert|Wav2Vec2Conformer|SeamlessM4TConformer)SelfAttention": _conformer,
    "WavLMAttention": AttentionSpec(
        Q_K_V_PROJ,
        "out_proj",
        returns="forward",
        per_head=(("gru_rel_pos_const", 1),),
        forward=wavlm_forward,
        calls_projection=False,
    ),
    "(ParakeetEncoder|NemotronAsrStreamingEncoder)Attention": AttentionSpec(
        (*Q_K_V_PROJ, ("relative_k_proj", "q")),
        "o_proj",
        per_head=(("bias_u", 0), ("bias_v", 0)),
        config_counts=("num_attention_heads",),
    ),
}
