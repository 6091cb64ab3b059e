"""How one attention class lays out its heads: data only, no behaviour."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

__all__ = ["AttentionSpec", "Returns", "RowLayout", "SpecOrChoice"]

RowLayout = Literal["q", "k", "v", "kv", "qkv", "hqkv", "gqkv"]
Returns = Literal["pair", "context", "t5", "mpnet", "albert", "unknown"]


@dataclass(frozen=True)
class AttentionSpec:
    """The layout of the heads of one attention class.

    Paths are dotted attribute names from the attention module; a leading ``^`` starts at its parent. What a path
    names may be missing in some configurations of the class; it is passed over then.

    Attributes:
        projections: Pairs ``(path, layout)`` of the linear layers that make queries, keys and values.
            The layout says in which order their output rows hold the heads: ``q``, ``k`` or ``v`` alone;
            ``kv`` and ``qkv`` (all queries, then all keys, then all values); ``hqkv`` (query, key, value of
            the first head, then of the second, ...); ``gqkv`` (the queries of a key-value group, its key,
            its value, then the next group).
        output_projection: Path of the linear layer that mixes the heads. Its input is head-major:
            ``[..., num_heads * head_dim]``.
        head_dim: Name of the attribute that holds the width of one head.
        returns: What the attention module returns: ``pair`` for ``(output, attention probabilities)`` with the
            output projection inside, ``context`` when the output projection is applied by somebody else, ``t5`` with
            the position bias in the middle, ``mpnet`` without the probabilities unless asked for, ``albert`` with
            residual and layer norm inside. With ``unknown``, no block can be left without a head.
        head_counts: Attributes that hold the number of heads; those present are updated.
        head_widths: Attributes that hold ``num_heads * head_dim``; those present are updated.
        is_cross_attention: Whether keys and values come from another sequence. Modules that are called
            ``encoder_attn`` or alike are known by their name.
        per_head: Pairs ``(path, dim)`` of parameters with one entry, or equally many, for each head along ``dim``.
        per_key_value_head: The same with one entry for each key-value head.
        per_head_inputs: Pairs ``(argument, dim)`` of arguments of ``forward`` that come with an entry for each head of
            the original model, such as position biases shared by all layers.
        config_counts: Names of the head counts that ``forward`` reads from the module's ``config``.
        forward: Replacement for a ``forward`` that cannot do with fewer heads than the hidden size holds.
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


# Some classes lay out their heads as their configuration says; a function then picks the spec of a module.
SpecOrChoice = AttentionSpec | Callable[[nn.Module], AttentionSpec]
