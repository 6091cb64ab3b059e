"""The layouts of attention and feed-forward blocks: where their heads and neurons are in linear layers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from .changes import Change, num_inputs, num_outputs, shorten_layer

__all__ = ["AttentionSpec", "FeedForwardSpec", "RowLayout", "UpLayout"]

RowLayout = Literal["q", "k", "v", "kv", "qkv", "hqkv", "gqkv", "hkv", "pqvk", "kkq", "gkkqq", "gqq"]
UpLayout = Literal["plain", "halves", "pairs"]


@dataclass(frozen=True)
class AttentionSpec:
    """The layout of the heads of one attention class.

    A path is a dotted attribute name, relative to the attention module or, with a leading ``^``, to its parent. Paths
    to attributes that a module lacks are skipped, because configurations of one class differ.

    Attributes:
        projections: Pairs ``(path, layout)`` of the linear layers that compute queries, keys and values; a path to a
            parameter stands for an ``nn.MultiheadAttention``. The layout is the order of heads in their output rows:
            ``q``, ``k`` or ``v`` alone, ``kv`` and ``qkv`` one kind after another; ``hqkv`` and ``hkv`` one query head
            after another, ``gqkv`` one key-value group; ``pqvk`` one part after another, as many as ``mp_num`` says.
            With ``q``, ``k``, ``v`` and ``hkv``, a head may have more rows than columns in the output projection, such
            as those of an output gate. With ``has_state``, ``q`` stands for what each head has for itself and ``k`` for
            what a group shares, in ``kkq`` one kind after another, in ``gkkqq`` and ``gqq`` one group.
        output_projection: Path of the linear layer that mixes the heads; its input is ``[..., num_heads * head_dim]``.
        head_dim: Name of the attribute with the width of one head in the input of the output projection, or that width.
        returns: Return value: ``pair`` for ``(output, attention probabilities)``, ``context`` with the output
            projection outside, ``contexts`` for the features of two sequences and the probabilities, ``two pairs`` for
            a pair for each of them, ``t5`` with the position bias in the middle, ``mpnet`` with probabilities on
            request, ``list`` for that as a list, ``albert`` with residual and norm inside, ``funnel`` for both,
            ``residual`` with the argument ``residual`` added, ``cache`` for a pair and the cache, ``longformer`` for
            features and local and global probabilities on request, ``tensor`` for the output alone. With ``forward``,
            that function serves modules without heads, too; with ``unknown``, every block must keep a head.
        head_counts: Paths of attributes with the number of heads; those of the parent only while there are heads.
        head_widths: Attributes with ``num_heads * head_dim``.
        is_cross_attention: Whether keys and values come from another sequence; names such as ``encoder_attn`` tell it.
        per_head: Pairs ``(path, dim)`` of parameters with entries for each head along ``dim``, or of lists of modules.
        per_key_value_head: The same for each key-value head.
        per_head_inputs: Pairs ``(argument, dim)`` of arguments of ``forward`` with an entry for each head of the
            original model, such as shared position biases. Dimension 0 may also be that of batch and heads together.
        config_counts: Names of the head counts that ``forward`` reads from the module's ``config``.
        forward: Replacement of a ``forward`` that fails with fewer heads.
        key_dim: Name of the attribute with the width of one query and one key, where it is not the one of ``head_dim``.
        key_widths: Attributes with ``num_key_value_heads * key_dim``.
        has_state: Whether heads keep a state of one size in place of keys and values, as in linear attention.
        calls_projection: Whether the class's own ``forward`` calls the output projection as a module. Otherwise,
            ``forward`` also replaces it while functions are called on the outputs of heads.
        borrowed: Those of ``k`` and ``v`` without a projection: ``kv`` of a layer that uses those of an earlier one,
            ``v`` where the keys are the values, too.
        lends: Whether later layers use the keys and values of this one, so that all key-value heads stay.
        other_outputs: Paths of further output projections of the same heads, at most as wide, for a second sequence.

    Example:
        >>> AttentionSpec((("q", "q"), ("k", "k"), ("v", "v")), "out").returns
        'pair'
    """

    projections: tuple[tuple[str, RowLayout], ...]
    output_projection: str
    head_dim: str | int = "head_dim"
    returns: str = "pair"
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


@dataclass(frozen=True)
class FeedForwardSpec:
    """The layout of the feed-forward block in one class of modules.

    Attributes:
        ups: Pairs ``(path, layout)`` of the linear layers that compute the intermediate features. The layout is the
            order of their output rows: ``plain`` for one row a neuron; ``halves`` for all rows of the gate, then all
            others; ``pairs`` for the two rows of one neuron after another.
        down: Path of the linear layer back to the hidden size; its input is ``[..., num_neurons]``.

    Example:
        >>> FeedForwardSpec((("gate_proj", "plain"), ("up_proj", "plain")), "down_proj").down
        'down_proj'
    """

    ups: tuple[tuple[str, UpLayout], ...]
    down: str

    def num_neurons(self, module: nn.Module) -> int:
        """Return the number of neurons in a module."""
        return num_inputs(module.get_submodule(self.down))

    def owner_of(self, name: str) -> str:
        """Return the name of the module that holds the projections of a block, from the name of the block."""
        if not f".{name}".endswith(f".{self.down}"):
            raise ValueError(f"it has another name than {self.down}")
        return name.removesuffix(self.down).removesuffix(".")

    def plan(self, module: nn.Module, size: int) -> Iterator[Change]:
        """Plan to give the layers of a module the shapes for some number of neurons."""
        width = self.num_neurons(module)
        for path, layout in self.ups:
            rows = 1 if layout == "plain" else 2
            up = module.get_submodule(path)
            if num_outputs(up) != rows * width:
                raise ValueError(f"{path} has not as many rows as neurons")
            yield from shorten_layer(up, rows * size, "outputs")
        yield from shorten_layer(module.get_submodule(self.down), size, "inputs")
