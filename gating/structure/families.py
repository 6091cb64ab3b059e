"""The registry of attention classes whose heads can be gated and removed, one row for each layout.

To add a family, add its row to one of the tables and a tiny model to ``tests/support/family_models.py``.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .subclasses import original_class

__all__ = ["AttentionSpec", "Returns", "RowLayout", "find_spec", "register_attention_spec"]

RowLayout = Literal["q", "k", "v", "kv", "qkv", "hqkv", "gqkv"]
Returns = Literal["pair", "context", "t5", "mpnet", "albert", "unknown"]


@dataclass(frozen=True)
class AttentionSpec:
    """The layout of the heads of one attention class.

    A path is a dotted attribute name, relative to the attention module or, with a leading ``^``, to its parent. Paths
    to attributes that a module lacks are skipped, because configurations of one class differ.

    Attributes:
        projections: Pairs ``(path, layout)`` of the linear layers that compute queries, keys and values. The layout is
            the order of heads in their output rows: ``q``, ``k`` or ``v`` alone; ``kv`` and ``qkv`` for all queries,
            then all keys, then all values; ``hqkv`` for query, key and value of one head after another; ``gqkv`` for
            the queries, the key and the value of one key-value group after another.
        output_projection: Path of the linear layer that mixes the heads; its input is
            ``[..., num_heads * head_dim]``.
        head_dim: Name of the attribute with the width of one head.
        returns: Return value of the attention module: ``pair`` for ``(output, attention probabilities)`` with the
            output projection inside, ``context`` with the output projection outside, ``t5`` with the position bias in
            the middle, ``mpnet`` without probabilities unless ``output_attentions`` is set, ``albert`` with residual
            and layer norm inside. With ``unknown``, every block must keep a head.
        head_counts: Attributes with the number of heads, updated where present.
        head_widths: Attributes with ``num_heads * head_dim``, updated where present.
        is_cross_attention: Whether keys and values come from another sequence. Modules with names such as
            ``encoder_attn`` are recognized without it.
        per_head: Pairs ``(path, dim)`` of parameters with the same number of entries for each head along ``dim``.
        per_key_value_head: The same for each key-value head.
        per_head_inputs: Pairs ``(argument, dim)`` of arguments of ``forward`` with an entry for each head of the
            original model, such as position biases that all layers share.
        config_counts: Names of the head counts that ``forward`` reads from the module's ``config``.
        forward: Replacement of a ``forward`` that fails with fewer heads.

    Example:
        >>> AttentionSpec((("q", "q"), ("k", "k"), ("v", "v")), "out").returns
        'pair'
    """

    projections: tuple[tuple[str, RowLayout], ...]
    output_projection: str
    head_dim: str = "head_dim"
    returns: Returns = "pair"
    head_counts: tuple[str, ...] = ("num_heads", "num_attention_heads", "n_heads")
    head_widths: tuple[str, ...] = ("all_head_size",)
    is_cross_attention: bool = False
    per_head: tuple[tuple[str, int], ...] = ()
    per_key_value_head: tuple[tuple[str, int], ...] = ()
    per_head_inputs: tuple[tuple[str, int], ...] = ()
    config_counts: tuple[str, ...] = ()
    forward: Callable[..., Any] | None = None


# Of a class whose layout depends on the configuration, a function returns the spec of a module.
_Row = AttentionSpec | Callable[[nn.Module], AttentionSpec]
_Projections = tuple[tuple[str, RowLayout], ...]

_Q_K_V: _Projections = (("q", "q"), ("k", "k"), ("v", "v"))
_Q_K_V_PROJ: _Projections = (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"))
_QUERY_KEY_VALUE: _Projections = (("query", "q"), ("key", "k"), ("value", "v"))
# Classes of one layout, which transformers copies from model to model.
_BERT_LIKE = (
    "(Bert|Roberta|XLMRoberta|Camembert|Electra|BertGeneration|Data2VecText|Ernie|LayoutLM|MarkupLM|MegatronBert|"
    "RemBert|RobertaPreLayerNorm|Splinter|VisualBert|XLMRobertaXL|Esm)"
)
_LLAMA_LIKE = (
    "(Llama|Mistral|Mixtral|Ministral3?|Qwen2|Qwen2Moe|Qwen3|Qwen3Moe|Gemma|Gemma2|Gemma3|VaultGemma|EuroBert|NomicBert|"
    "Granite|GraniteMoe|GraniteMoeShared|Starcoder2|Olmo|Cohere2|Glm|Glm4|Helium|SmolLM3|Arcee|Apertus|Ernie4_5|"
    "Exaone4|SeedOss|Nemotron|Phimoe|HunYuanDenseV1|JinaEmbeddingsV3)"
)


def _context(
    projections: _Projections = _QUERY_KEY_VALUE,
    *,
    is_cross_attention: bool = False,
    per_head: tuple[tuple[str, int], ...] = (),
) -> AttentionSpec:
    """Return the spec of attention with the output projection in a sibling module, as in BERT."""
    return AttentionSpec(
        projections,
        "^output.dense",
        head_dim="attention_head_size",
        returns="context",
        is_cross_attention=is_cross_attention,
        per_head=per_head,
    )


def _deberta(module: nn.Module) -> AttentionSpec:
    """Return the spec for the first or second DeBERTa; its projections of positions have rows for each head, too."""
    first: _Projections = (("in_proj", "hqkv"), ("pos_proj", "k"), ("pos_q_proj", "q"))
    second: _Projections = (("query_proj", "q"), ("key_proj", "k"), ("value_proj", "v"))
    second += (("pos_key_proj", "k"), ("pos_query_proj", "q"))
    return _context(first if hasattr(module, "in_proj") else second, per_head=(("q_bias", 0), ("v_bias", 0)))


def _gpt2(module: nn.Module) -> AttentionSpec:
    """Return the spec for self-attention, or for cross-attention, whose queries have a projection of their own."""
    is_cross_attention = bool(getattr(module, "is_cross_attention", False))
    return AttentionSpec(
        (("q_attn", "q"), ("c_attn", "kv")) if is_cross_attention else (("c_attn", "qkv"),),
        "c_proj",
        head_widths=("split_size",),
        is_cross_attention=is_cross_attention,
    )


def _falcon(module: nn.Module) -> AttentionSpec:
    """Return the spec for one of three layouts; ALiBi's slopes depend on the original number of a head."""
    layout: RowLayout = "hqkv"
    if getattr(module, "new_decoder_architecture", False):
        layout = "gqkv"
    elif getattr(module, "multi_query", False):
        layout = "qkv"
    has_alibi = bool(getattr(getattr(module, "config", None), "alibi", False))
    per_head_inputs = (("alibi", 1), ("attention_mask", 1)) if has_alibi else ()
    return AttentionSpec((("query_key_value", layout),), "dense", per_head_inputs=per_head_inputs)


def blip_vision_forward(self: Any, hidden_states: Tensor, **_kwargs: object) -> tuple[Tensor, Tensor]:
    """Attend as BLIP's image encoder, whose own code computes the width of a head from the hidden size."""
    queries, keys, values = self.qkv(hidden_states).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
    probabilities = self.dropout(torch.softmax(queries @ keys.transpose(-1, -2) * self.scale, dim=-1))
    head_outputs = (probabilities @ values).transpose(1, 2).flatten(2)
    return self.projection(head_outputs), probabilities


_TEXT_ENCODERS: dict[str, _Row] = {
    f"{_BERT_LIKE}SelfAttention": _context(),
    f"{_BERT_LIKE}CrossAttention": _context(is_cross_attention=True),
    "DistilBertSelfAttention": AttentionSpec(
        (("q_lin", "q"), ("k_lin", "k"), ("v_lin", "v")), "out_lin", head_dim="attention_head_size"
    ),
    # One module serves many layers. The residual and its norm are inside.
    "AlbertAttention": AttentionSpec(_QUERY_KEY_VALUE, "dense", head_dim="attention_head_size", returns="albert"),
    "DisentangledSelfAttention": _deberta,
    # One table of biases serves all layers.
    "MPNetSelfAttention": AttentionSpec(
        _Q_K_V, "o", head_dim="attention_head_size", returns="mpnet", per_head_inputs=(("position_bias", 1),)
    ),
    "ModernBertAttention": AttentionSpec((("Wqkv", "qkv"),), "Wo"),
}
_DECODERS: dict[str, _Row] = {
    f"{_LLAMA_LIKE}Attention": AttentionSpec(_Q_K_V_PROJ, "o_proj"),
    "GPT2Attention": _gpt2,
    "GPTNeoXAttention": AttentionSpec((("query_key_value", "hqkv"),), "dense", head_dim="head_size"),
    "(OPT|GPTJ|BioGpt)Attention": AttentionSpec(_Q_K_V_PROJ, "out_proj"),
    "GPTBigCodeAttention": AttentionSpec((("c_attn", "qkv"),), "c_proj", head_widths=("embed_dim",)),
    "PersimmonAttention": AttentionSpec((("query_key_value", "hqkv"),), "dense"),
    "ModernBertDecoderAttention": AttentionSpec(_Q_K_V_PROJ, "Wo"),
    "XGLMAttention": AttentionSpec(_Q_K_V_PROJ, "out_proj", head_widths=("embed_dim",)),
    "PhiAttention": AttentionSpec(_Q_K_V_PROJ, "dense"),
    "Phi3Attention": AttentionSpec((("qkv_proj", "qkv"),), "o_proj", config_counts=("num_attention_heads",)),
    "FalconAttention": _falcon,
    "GptOssAttention": AttentionSpec(_Q_K_V_PROJ, "o_proj", per_head=(("sinks", 0),)),
    "CohereAttention": AttentionSpec(
        _Q_K_V_PROJ, "o_proj", per_head=(("q_norm.weight", 0),), per_key_value_head=(("k_norm.weight", 0),)
    ),
}
_ENCODER_DECODERS: dict[str, _Row] = {
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
        _Q_K_V_PROJ, "out_proj"
    ),
    "T5Gemma(Self|Cross)Attention": AttentionSpec(_Q_K_V_PROJ, "o_proj"),
    "MvpAttention": AttentionSpec(_Q_K_V_PROJ, "out_proj", head_widths=("embed_dim",)),
}
_VISION_AUDIO: dict[str, _Row] = {
    "(ViT|ViTMAE|ViTMSN|DeiT|Dinov2|Dinov2WithRegisters|DINOv3ViT|IJepa)Attention": AttentionSpec(
        _Q_K_V_PROJ, "o_proj"
    ),
    # The layer's and the encoder's table of position biases both come in through the mask.
    "BeitAttention": AttentionSpec(_Q_K_V_PROJ, "o_proj", per_head_inputs=(("attention_mask", 1),)),
    "SwinAttention": AttentionSpec(
        _Q_K_V_PROJ, "o_proj", per_head=(("relative_position_bias.relative_position_bias_table", 1),)
    ),
    "(CLIP|Siglip|Aimv2|Wav2Vec2|Hubert|UniSpeech|UniSpeechSat|SEW|Data2VecAudio)Attention": AttentionSpec(
        _Q_K_V_PROJ, "out_proj"
    ),
    "BlipAttention": AttentionSpec(
        (("qkv", "qkv"),), "projection", head_widths=("embed_dim",), forward=blip_vision_forward
    ),
    "BlipTextSelfAttention": _context(),
}

_SHIPPED: dict[str, _Row] = {**_TEXT_ENCODERS, **_DECODERS, **_ENCODER_DECODERS, **_VISION_AUDIO}
_REGISTERED: dict[str, _Row] = {}


def register_attention_spec(class_name: str, spec: AttentionSpec | Callable[[nn.Module], AttentionSpec]) -> None:
    """Register the layout of an attention class; a later row for the same pattern replaces the earlier one.

    Args:
        class_name: Name of the attention class, or a regular expression that matches it in full.
        spec: The layout of its heads, or a function that returns the layout for a module of the class.

    Example:
        >>> register_attention_spec("MyAttention", AttentionSpec((("q", "q"), ("k", "k"), ("v", "v")), "out"))
    """
    _REGISTERED.pop(class_name, None)
    _REGISTERED[class_name] = spec
    _find_row.cache_clear()


def find_spec(module: nn.Module, *, shipped_only: bool = False) -> AttentionSpec | None:
    """Return the spec of an attention module, or None, by its class or the nearest ancestor with a row.

    An attribute ``attention_spec`` of the module, where discovery stores its findings, takes precedence.

    Args:
        module: Any module.
        shipped_only: Whether to ignore discovered specs and those that the user registered.

    Example:
        >>> find_spec(nn.Linear(2, 2)) is None
        True
    """
    own = getattr(module, "attention_spec", None)
    if isinstance(own, AttentionSpec) and not shipped_only:
        return own
    row = _find_row(original_class(type(module)), shipped_only)  # type: ignore[arg-type]
    return row if row is None or isinstance(row, AttentionSpec) else row(module)


@lru_cache(maxsize=4096)
def _find_row(attention_class: type, shipped_only: bool) -> _Row | None:
    # Newest first: rows of the user precede those of the package.
    rows = [] if shipped_only else [*reversed(_REGISTERED.items())]
    rows += _SHIPPED.items()
    for ancestor in attention_class.__mro__:
        for pattern, spec in rows:
            if re.fullmatch(pattern, ancestor.__name__):
                return spec
    return None
