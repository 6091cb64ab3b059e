"""The registry of attention classes whose heads can be gated and removed, one row per layout."""

import re

from .spec import AttentionSpec, RowLayout

__all__ = ["find_spec", "register_attention_spec"]

_SPECS: dict[str, AttentionSpec] = {}


def register_attention_spec(class_name: str, spec: AttentionSpec) -> None:
    """Teach the library the layout of an attention class; a later row for the same pattern replaces it.

    Args:
        class_name: Name of the attention class, or a regular expression that matches it in full.
        spec: How the class lays out its heads.

    Example:
        >>> register_attention_spec("MyAttention", AttentionSpec((("q", "q"), ("k", "k"), ("v", "v")), "out"))
    """
    _SPECS[class_name] = spec


def find_spec(attention_class: type) -> AttentionSpec | None:
    """Return the spec of an attention class or of the nearest class that it inherits from, if there is one."""
    for ancestor in attention_class.__mro__:
        # Newest first: what a user registers goes before what is shipped.
        for pattern, spec in reversed(_SPECS.items()):
            if re.fullmatch(pattern, ancestor.__name__):
                return spec
    return None


_BERT_LIKE: tuple[tuple[str, RowLayout], ...] = (("query", "q"), ("key", "k"), ("value", "v"))

# BERT and its textual copies: the output projection stands in a sibling module.
register_attention_spec(
    "(Bert|Roberta|XLMRoberta|Camembert|Electra)SelfAttention",
    AttentionSpec(_BERT_LIKE, "^output.dense", head_dim="attention_head_size", returns="context"),
)
register_attention_spec(
    "(Bert|Roberta|XLMRoberta|Camembert|Electra)CrossAttention",
    AttentionSpec(
        _BERT_LIKE, "^output.dense", head_dim="attention_head_size", returns="context", is_cross_attention=True
    ),
)
register_attention_spec(
    "DistilBertSelfAttention",
    AttentionSpec((("q_lin", "q"), ("k_lin", "k"), ("v_lin", "v")), "out_lin", head_dim="attention_head_size"),
)
register_attention_spec(
    "ViTAttention",
    AttentionSpec((("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v")), "o_proj"),
)
