"""Where the attention heads of a model are."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from .edits import num_inputs, num_outputs
from .errors import InputError
from .families import AttentionSpec, RowLayout, find_spec

__all__ = ["AttentionBlock", "AttentionKind", "iter_attention_blocks"]

AttentionKind = Literal["encoder", "decoder", "cross", "self"]

_CROSS_ATTENTION = re.compile(r"(^|\.)(encoder_attn|EncDecAttention|cross_?attention|cross_?attn)(\.|$)", re.I)
_TOWER = re.compile(r"(?:^|\.)(?:\w+_)?(encoder|decoder)(?:\.|$)")


@dataclass(frozen=True)
class AttentionBlock:
    """One attention module of a model with its projections.

    Attributes:
        name: Dotted name of the attention module, relative to the model without its task head.
        layer_idx: Number of the layer the block belongs to.
        module: The attention module. In models that share layers, it does the work of several.
        parent: The module that holds it.
        spec: How the class lays out its heads.
        num_key_value_heads: Number of key-value heads; smaller than ``num_heads`` with grouped queries.
        head_dim: Width of one head.
        head_ids: For each (query) head that is there now, the number it had in the model before any removal.
        head_slots: The same for everything that the projections have rows for: the heads, and among them the padding
            that fills groups of query heads up. The input of the output projection is
            ``[..., len(head_slots) * head_dim]``.
        num_heads_before: Number of heads before any removal.
    """

    name: str
    layer_idx: int
    module: nn.Module
    parent: nn.Module
    spec: AttentionSpec
    num_key_value_heads: int
    head_dim: int
    head_ids: tuple[int, ...]
    head_slots: tuple[int, ...]
    num_heads_before: int

    @property
    def num_heads(self) -> int:
        """Number of (query) heads that are there now, without padding."""
        return len(self.head_ids)

    @property
    def is_cross_attention(self) -> bool:
        """Whether keys and values come from another sequence."""
        named_so = bool(_CROSS_ATTENTION.search(self.name))
        return self.spec.is_cross_attention or named_so or bool(getattr(self.module, "is_cross_attention", False))

    @property
    def kind(self) -> AttentionKind:
        """Which part of the model's attention this is: ``cross``, or self-attention of the ``encoder`` or ``decoder``.

        By the names of the modules around it, the outermost first, as a decoder made of a BERT has an encoder inside.
        The self-attention of a model whose names speak of neither is ``self``.
        """
        if self.is_cross_attention:
            return "cross"
        tower = _TOWER.search(self.name)
        if tower is None:
            return "self"
        return "encoder" if tower.group(1) == "encoder" else "decoder"

    @property
    def output_projection(self) -> nn.Module:
        """The layer that mixes the heads; its input is head-major."""
        holder, attribute = self.locate(self.spec.output_projection)
        module = getattr(holder, attribute)
        assert isinstance(module, nn.Module)
        return module

    def projections(self) -> Iterator[tuple[nn.Module, RowLayout]]:
        """Yield each linear layer that makes queries, keys or values, with the layout of its rows."""
        for path, layout in self.spec.projections:
            if self.has(path):
                yield getattr(*self.locate(path)), layout

    def locate(self, path: str) -> tuple[nn.Module, str]:
        """Return the module that holds what a path of the spec names, and the attribute's name there."""
        start = self.parent if path.startswith("^") else self.module
        *way, attribute = path.removeprefix("^").split(".")
        return start.get_submodule(".".join(way)), attribute

    def has(self, path: str) -> bool:
        """Say whether this module has what a path of the spec names; some configurations lack parts."""
        try:
            return getattr(*self.locate(path), None) is not None
        except AttributeError:
            return False


def iter_attention_blocks(model: nn.Module) -> Iterator[AttentionBlock]:
    """Yield the attention blocks of a model whose class, or a class it inherits from, has a spec.

    The blocks come in the order of the model's modules. A module that serves several layers is one block. Nothing is
    checked: :func:`~gating.discovery.find.find_attention_blocks` refuses models whose heads cannot be removed.
    """
    prefix = _base_prefix(model)
    modules = dict(model.named_modules())
    order = 0
    for full_name, module in modules.items():
        spec = find_spec(module)
        parent = modules[full_name.rpartition(".")[0]]
        if spec is None or not _fits(full_name, module, parent, spec):
            continue
        name = full_name.removeprefix(prefix)
        layer_number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
        layer_idx = int(layer_number.group(1)) if layer_number else order
        yield _describe(name, layer_idx, module, parent, spec)
        order += 1


def _fits(name: str, module: nn.Module, parent: nn.Module, spec: AttentionSpec) -> bool:
    """Say whether a module has what its spec is about; a class of the same name may be built otherwise.

    What a user has described has to fit: a path that does not exist is a mistake then.
    """
    block = AttentionBlock(name, 0, module, parent, spec, 0, 0, (), (), 0)
    if hasattr(module, "head_slots"):
        return True
    layouts = {kind for _, layout in block.projections() for kind in layout}
    fits = hasattr(module, spec.head_dim) and block.has(spec.output_projection) and {"q", "k", "v"} <= layouts
    if not fits and find_spec(module, shipped_only=True) is not spec:
        paths = [*(path for path, _ in spec.projections), spec.output_projection, spec.head_dim]
        missing = [path for path in paths if not block.has(path)]
        raise InputError(
            f"The spec of {type(module).__name__} does not fit {name}: "
            + (f"it has no {missing[0]!r}." if missing else "its projections do not make queries, keys and values.")
        )
    return fits


def _describe(name: str, layer_idx: int, module: nn.Module, parent: nn.Module, spec: AttentionSpec) -> AttentionBlock:
    head_dim = int(getattr(module, spec.head_dim))
    unfinished = AttentionBlock(name, layer_idx, module, parent, spec, 0, head_dim, (), (), 0)
    if hasattr(module, "head_slots"):
        # What removal left behind.
        head_slots, head_ids, num_heads_before = _memory(module)
    else:
        # A module that was never touched has all its heads, numbered in order.
        num_heads_before = num_inputs(unfinished.output_projection) // head_dim
        head_slots = head_ids = tuple(range(num_heads_before))
    num_key_value_heads = _count_key_value_heads(unfinished, len(head_slots)) if head_slots else 0
    return AttentionBlock(
        name, layer_idx, module, parent, spec, num_key_value_heads, head_dim, head_ids, head_slots, num_heads_before
    )


def _memory(module: Any) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    return module.head_slots, module.head_ids, module.num_heads_before


def _count_key_value_heads(block: AttentionBlock, num_slots: int) -> int:
    for linear, layout in block.projections():
        num_blocks = num_outputs(linear) // block.head_dim
        if layout in ("k", "v"):
            return num_blocks
        if layout in ("qkv", "gqkv"):
            return (num_blocks - num_slots) // 2
    return num_slots


def _base_prefix(model: nn.Module) -> str:
    """Names are relative to the base model, so that a record fits every task head on top of it."""
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if prefix and hasattr(model, prefix) else ""
