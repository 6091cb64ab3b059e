"""How one attention class lays out its heads: data only, no behaviour."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["AttentionSpec", "Returns", "RowLayout"]

RowLayout = Literal["q", "k", "v", "kv", "qkv", "hqkv", "gqkv"]
Returns = Literal["pair", "context"]


@dataclass(frozen=True)
class AttentionSpec:
    """The layout of the heads of one attention class.

    Paths are dotted attribute names from the attention module; a leading ``^`` starts at its parent.

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
            output projection inside, ``context`` when the output projection is applied by somebody else.
        head_counts: Attributes that hold the number of heads; those present are updated.
        head_widths: Attributes that hold ``num_heads * head_dim``; those present are updated.
        is_cross_attention: Whether keys and values come from another sequence.
    """

    projections: tuple[tuple[str, RowLayout], ...]
    output_projection: str
    head_dim: str = "head_dim"
    returns: Returns = "pair"
    head_counts: tuple[str, ...] = ("num_heads", "num_attention_heads", "n_heads")
    head_widths: tuple[str, ...] = ("all_head_size",)
    is_cross_attention: bool = False
