"""The layout of the heads of an attention class."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from .errors import InputError

__all__ = [
    "Q_K_V",
    "Q_K_V_PROJ",
    "QUERY_KEY_VALUE",
    "AttentionSpec",
    "Projections",
    "Returns",
    "Row",
    "RowLayout",
    "check_row",
    "context_spec",
]

RowLayout = Literal["q", "k", "v", "kv", "qkv", "hqkv", "gqkv", "hkv", "pqvk", "kkq", "gkkqq", "gqq"]
Returns = Literal[
    "pair",
    "context",
    "t5",
    "mpnet",
    "list",
    "contexts",
    "two pairs",
    "albert",
    "funnel",
    "residual",
    "cache",
    "longformer",
    "tensor",
    "forward",
    "unknown",
]


@dataclass(frozen=True)
class AttentionSpec:
    """The layout of the heads of one attention class.

    A path is a dotted attribute name, relative to the attention module or, with a leading ``^``, to its parent. Paths
    to attributes that a module lacks are skipped, because configurations of one class differ.

    Attributes:
        projections: Pairs ``(path, layout)`` of the linear layers that compute queries, keys and values; a path to a
            parameter stands for an ``nn.MultiheadAttention``, which has their weights itself. The layout is
            the order of heads in their output rows: ``q``, ``k`` or ``v`` alone; ``kv`` and ``qkv`` for all queries,
            then all keys, then all values; ``hqkv`` for query, key and value of one head after another; ``gqkv`` for
            the queries, the key and the value of one key-value group after another; ``hkv`` for key and value of one
            query head after another, as from a latent that all heads share; ``pqvk`` for the queries, values and keys
            of one part of the heads after another, as many parts as ``mp_num`` says, of which a removal leaves one.
            With ``q``, ``k``, ``v`` and ``hkv``, a head may have more rows than columns in the output projection, such
            as those of an output gate beside its query. With ``has_state``, ``q`` stands for what each head has for
            itself and ``k`` for what a group shares: ``kkq`` for all queries, then all keys, then all values;
            ``gkkqq`` and ``gqq`` for one group after another.
        output_projection: Path of the linear layer that mixes the heads; its input is
            ``[..., num_heads * head_dim]``.
        head_dim: Name of the attribute with the width of one head in the input of the output projection, or that width.
        returns: Return value of the attention module: ``pair`` for ``(output, attention probabilities)`` with the
            output projection inside, ``context`` with the output projection outside, ``contexts`` for the features of
            two sequences and the probabilities, ``two pairs`` for one pair for each of two sequences, ``t5`` with the
            position bias in the middle, ``mpnet`` without probabilities unless ``output_attentions`` is set, ``list``
            for that as a list, ``albert`` with residual and layer norm inside, ``funnel`` for both, ``residual`` with
            the addition of the argument ``residual`` inside, ``cache`` for a pair and the cache, ``longformer`` for the
            features of the heads and, if asked for, the local and global probabilities, ``tensor`` for the output
            alone. With ``forward``, the function ``forward`` serves modules without heads, too. With ``unknown``, every
            block must keep a head.
        head_counts: Paths of attributes with the number of heads, updated where present; those of the parent only
            while there are heads.
        head_widths: Attributes with ``num_heads * head_dim``, updated where present.
        is_cross_attention: Whether keys and values come from another sequence. Modules with names such as
            ``encoder_attn`` are recognized without it.
        per_head: Pairs ``(path, dim)`` of parameters with the same number of entries for each head along ``dim``, or of
            lists with a module for each head.
        per_key_value_head: The same for each key-value head.
        per_head_inputs: Pairs ``(argument, dim)`` of arguments of ``forward`` with an entry for each head of the
            original model, such as position biases that all layers share. Dimension 0 may also be that of batch and
            heads together.
        config_counts: Names of the head counts that ``forward`` reads from the module's ``config``.
        forward: Replacement of a ``forward`` that fails with fewer heads.
        key_dim: Name of the attribute with the width of one query and one key, where it is not the one of ``head_dim``.
        key_widths: Attributes with ``num_key_value_heads * key_dim``, updated where present.
        has_state: Whether heads keep a state of one size in place of keys and values, as in linear attention.
        calls_projection: Whether the class's own ``forward`` calls the output projection as a module. Otherwise,
            ``forward`` also replaces it while functions are called on the outputs of heads.
        borrowed: Those of ``k`` and ``v`` without a projection: ``kv`` of a layer that uses keys and values of an
            earlier one, ``v`` where the keys are the values, too.
        lends: Whether later layers use the keys and values of this one. All key-value heads stay then, as where keys
            are borrowed, and padding where no query head is kept.
        other_outputs: Paths of further output projections of the same heads, where they attend for two sequences. Heads
            have at most the width of those in ``output_projection``.

    Example:
        >>> AttentionSpec((("q", "q"), ("k", "k"), ("v", "v")), "out").returns
        'pair'
    """

    projections: tuple[tuple[str, RowLayout], ...]
    output_projection: str
    head_dim: str | int = "head_dim"
    returns: Returns = "pair"
    head_counts: tuple[str, ...] = ("num_heads", "num_attention_heads", "n_heads")
    head_widths: tuple[str, ...] = ("all_head_size",)
    is_cross_attention: bool = False
    per_head: tuple[tuple[str, int], ...] = ()
    per_key_value_head: tuple[tuple[str, int], ...] = ()
    per_head_inputs: tuple[tuple[str, int], ...] = ()
    config_counts: tuple[str, ...] = ()
    forward: Callable[..., Any] | None = None
    key_dim: str = ""
    key_widths: tuple[str, ...] = ()
    has_state: bool = False
    calls_projection: bool = True
    borrowed: Literal["", "v", "kv"] = ""
    lends: bool = False
    other_outputs: tuple[str, ...] = ()

    @property
    def keeps_key_value_heads(self) -> bool:
        """Whether all key-value heads stay, because other layers use them, too."""
        return self.lends or "k" in self.borrowed

    def width_of_head(self, module: nn.Module) -> int | None:
        """Return the width of one head of a module; None if the module has no such attribute."""
        return self.head_dim if isinstance(self.head_dim, int) else getattr(module, self.head_dim, None)


# Of a class whose layout depends on the configuration, a function returns the spec of a module; None for a module of
# another class of the same name.
Row = AttentionSpec | Callable[[nn.Module], AttentionSpec | None]
Projections = tuple[tuple[str, RowLayout], ...]

Q_K_V: Projections = (("q", "q"), ("k", "k"), ("v", "v"))
Q_K_V_PROJ: Projections = (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"))
QUERY_KEY_VALUE: Projections = (("query", "q"), ("key", "k"), ("value", "v"))


def context_spec(
    projections: Projections = QUERY_KEY_VALUE,
    *,
    is_cross_attention: bool = False,
    per_head: tuple[tuple[str, int], ...] = (),
    per_head_inputs: tuple[tuple[str, int], ...] = (),
) -> AttentionSpec:
    """Return the spec of attention with the output projection in a sibling module, as in BERT."""
    return AttentionSpec(
        projections,
        "^output.dense",
        head_dim="attention_head_size",
        returns="context",
        is_cross_attention=is_cross_attention,
        per_head=per_head,
        per_head_inputs=per_head_inputs,
    )


def check_row(class_name: Any, projections: Any) -> None:
    """Raise ``InputError`` for a row of a registry whose pattern or pairs of paths and layouts cannot be read."""
    try:
        re.compile(class_name)
    except (re.error, TypeError):
        raise InputError(
            f"class_name={class_name!r} is neither the name of a class nor a regular expression for such names."
        ) from None
    is_list = isinstance(projections, (tuple, list))
    if not (is_list and all(isinstance(pair, tuple) and len(pair) == 2 for pair in projections)):
        raise InputError(
            f"The projections {projections!r} of the spec for {class_name} are no pairs of a path and a layout: give "
            "AttentionSpec or FeedForwardSpec with pairs such as ('q_proj', 'q') or ('fc1', 'plain')."
        )
