"""Attention blocks: the attention modules of a model with their heads, and the removal of some of them.

Removed are rows of the query, key and value projections, and columns of the output projection. With grouped queries,
all key-value heads serve the same number of query heads, their group. A group therefore cannot shrink alone: groups
without any head are removed, and the others shrink to the size of the largest. Removed heads pad them; padding keeps
its query rows, and its columns of the output projection are zero.
"""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from gating.families.layouts import BY_COUNT, AttentionSpec, RowLayout, has_variable, num_inputs, num_outputs
from gating.families.registry import find_spec, registered_spec
from gating.loader.modeling import base_prefix
from gating.loader.parts import FORMS
from gating.structure.attention_removal import plan_head_removal
from gating.structure.blocks import Block, layer_number
from gating.structure.edits import Edit
from gating.structure.hooks import Handle, Hooks, hook_input, with_forward
from gating.structure.sizes import GateSize, head_norms, head_sizes, token_counter

_CROSS_ATTENTION = re.compile(r"(^|\.)(encoder_attn|EncDecAttention|cross_?attention|cross_?attn)(\.|$)", re.I)
_TOWER = re.compile(r"(?:^|\.)(?:\w+_)?(encoder|decoder)(?:\.|$)")


@dataclass(frozen=True, kw_only=True)
class AttentionBlock(Block):
    """One attention module of a model with its projections; the module may serve several layers.

    Attributes:
        parent: The parent of the module.
        num_key_value_heads: Number of key-value heads; smaller than ``num_heads`` with grouped queries.
        head_dim: Width of one head in the input of the output projection.
        head_ids: Original numbers of the present (query) heads.
        head_slots: Original numbers of all heads with rows in the projections: the present ones, the padding of
            groups of query heads, and one without effect where a class needs a head. The input of the output
            projection is ``[..., len(head_slots) * head_dim]``.
        num_heads_before: Number of heads before any removal.
    """

    unit = "heads"
    stored_as = "attention_spec"

    parent: nn.Module
    num_key_value_heads: int = 0
    head_dim: int = 0
    head_ids: tuple[int, ...] = ()
    head_slots: tuple[int, ...] = ()
    num_heads_before: int = 0

    @property
    def key_dim(self) -> int:
        """Width of one query and one key."""
        return int(getattr(self.module, self.spec.key_dim)) if self.spec.key_dim else self.head_dim

    @property
    def output_projection(self) -> nn.Module:
        """The linear layer that mixes the heads; its input is head-major."""
        module: nn.Module = getattr(*self.locate(self.spec.output_projection))
        return module

    def other_outputs(self) -> Iterator[tuple[nn.Module, int]]:
        """Yield further output projections of the same heads, with the width of a head in their inputs."""
        for path in self.spec.other_outputs if self.head_slots else ():
            linear = getattr(*self.locate(path))
            yield linear, num_inputs(linear) // len(self.head_slots)

    def projections(self) -> Iterator[tuple[nn.Module, RowLayout]]:
        """Yield the linear layers that compute queries, keys and values, with the layouts of their rows."""
        for path, layout in self.spec.projections:
            if self.has(path):
                holder, attribute = self.locate(path)
                found = getattr(holder, attribute)
                yield found if isinstance(found, nn.Module) else holder, layout

    def locate(self, path: str) -> tuple[nn.Module, str]:
        """Return the module and the name of the attribute at a path of the spec."""
        start = self.parent if path.startswith("^") else self.module
        *way, attribute = path.removeprefix("^").split(".")
        return start.get_submodule(".".join(way)), attribute

    def has(self, path: str) -> bool:
        """Return whether a path of the spec exists; configurations of one class differ."""
        try:
            return getattr(*self.locate(path), None) is not None
        except AttributeError:
            return False

    def _width_of_head(self) -> int | None:
        """Return the width of one head in the input of the output projection; None if the module does not tell it."""
        module: Any = self.module
        width = self.spec.head_dim
        if width != BY_COUNT:
            return width if isinstance(width, int) else getattr(module, width, None)
        if hasattr(module, "head_slots"):
            number = len(module.head_slots)
        else:
            number = next((getattr(*self.locate(path)) for path in self.spec.head_counts if self.has(path)), 0)
        return num_inputs(self.output_projection) // number if number else None

    def counted(self) -> "AttentionBlock":
        """Return the block with the heads that its module has, or those that an earlier removal has noted there."""
        module: Any = self.module
        block = replace(self, head_dim=int(self._width_of_head() or 0))
        if hasattr(module, "head_slots"):
            slots, heads, num_before = tuple(module.head_slots), tuple(module.head_ids), module.num_heads_before
        else:
            num_before = num_inputs(block.output_projection) // block.head_dim
            slots = heads = tuple(range(num_before))
        block = replace(block, head_ids=heads, head_slots=slots, num_heads_before=num_before)
        return replace(block, num_key_value_heads=block._count_key_value_heads() if slots else 0)

    def _count_key_value_heads(self) -> int:
        num_slots = len(self.head_slots)
        # Values first: their width is that of the output projection's columns, that of the keys may be another.
        for linear, layout in sorted(self.projections(), key=lambda projection: projection[1] == "k"):
            num_blocks = num_outputs(linear) // self.head_dim
            if layout in ("k", "v"):
                return num_blocks
            if layout in ("qkv", "gqkv", "pqvk"):
                return (num_blocks - num_slots) // 2
            if layout in ("kkq", "gkkqq"):
                return (num_outputs(linear) - layout.count("q") * num_slots * self.head_dim) // (2 * self.key_dim)
        size = getattr(self.module, "num_key_value_groups", 1) if "k" in self.spec.borrowed else 1
        return num_slots // int(size)

    @property
    def queries_per_key(self) -> int:
        """Number of query heads, padding included, that share one key-value head."""
        return len(self.head_slots) // self.num_key_value_heads

    @property
    def num_heads(self) -> int:
        """Number of present (query) heads, without padding."""
        return len(self.head_ids)

    @property
    def size_before(self) -> int:
        """Number of heads before any removal."""
        return self.num_heads_before

    @property
    def unit_ids(self) -> tuple[int, ...]:
        """Original numbers of the present heads."""
        return self.head_ids

    @property
    def slot_ids(self) -> tuple[int, ...]:
        """Original numbers of the heads in the slots."""
        return self.head_slots

    @property
    def slot_widths(self) -> tuple[int, ...]:
        """Width of the head in each slot."""
        return (self.head_dim,) * len(self.head_slots)

    @property
    def cache_width(self) -> int:
        """Number of values that a decoder caches for each token: keys and values, or the latent they are made of."""
        if not self.head_slots:
            return self.least_cache_width
        if (latent := self._latent) is not None:
            return num_inputs(latent) + int(getattr(self.module, "qk_rope_head_dim", 0))
        return self.num_key_value_heads * self.head_cache_width

    @property
    def head_cache_width(self) -> int:
        """Number of values that a decoder caches for each token and key-value head; 0 for a latent, or no own keys."""
        is_own = not (self.spec.has_state or "k" in self.spec.borrowed) and self._latent is None
        return self.key_dim + self.head_dim if is_own else 0

    @property
    def least_cache_width(self) -> int:
        """Number of values that a decoder caches for each token without any kept head: of a placeholder, or of a head.

        The placeholder is that of :func:`gating.loader.parts.emptied`; the head is the one that a class needs.
        """
        if self.can_be_emptied:
            return 0 if self.spec.returns == "tensor" or "k" in self.spec.borrowed else 2
        return (self.num_key_value_heads if self.spec.lends else 1) * self.head_cache_width

    @property
    def _latent(self) -> nn.Module | None:
        """The projection from the latent of which latent attention makes keys and values."""
        if has_variable(self.module, "past_key_values"):
            return None  # older versions cache these
        return next((linear for linear, layout in self.projections() if layout == "hkv"), None)

    def registered_spec(self, *, shipped_only: bool = False) -> AttentionSpec | None:
        """Return the layout of the module's class in the registry, or None."""
        return registered_spec(self.module, shipped_only=shipped_only)

    @property
    def is_cross_attention(self) -> bool:
        """Whether keys and values come from another sequence: the layout, a name or an attribute tells it."""
        named_so = "Cross" in type(self.module).__name__ or _CROSS_ATTENTION.search(self.name) is not None
        return self.spec.is_cross_attention or named_so or bool(getattr(self.module, "is_cross_attention", False))

    @property
    def kind(self) -> Literal["encoder", "decoder", "cross", "self"]:
        """Kind of attention: ``cross``, or self-attention of the ``encoder``, the ``decoder`` or neither (``self``).

        The name of the outermost module decides: a decoder made of a BERT has an encoder inside.
        """
        if self.is_cross_attention:
            return "cross"
        tower = _TOWER.search(self.name)
        if tower is None:
            return "self"
        return "encoder" if tower.group(1) == "encoder" else "decoder"

    def hook_features(self, function: Callable[[Tensor], Tensor | None]) -> Handle:
        """Call a function on the outputs of the heads, ``[..., num_slots * head_dim]``, in each use of the module."""
        hooks = [hook_input(self.output_projection, function)]
        for linear, width in self.other_outputs():
            hooks.append(hook_input(linear, partial(_call_padded, function, width, self.head_dim)))
        forward = None if self.spec.calls_projection else self.spec.forward
        return Hooks(hooks) if forward is None else with_forward(Hooks(hooks), self.module, forward)

    def hook_calls(self, calls: dict[str, float]) -> list[Handle]:
        """Count the queries, as ``tokens``, and the ``keys`` of a forward pass."""
        # Where keys are those of an earlier layer, there are as many as queries.
        linear = max(self.projections(), key=lambda projection: "k" in projection[1])[0]
        keys = linear.register_forward_pre_hook(partial(_count_keys, calls), with_kwargs=True)
        return [self.hook_features(token_counter(calls)), keys]

    def gate_sizes(self, *, group_queries: bool = True) -> list[GateSize]:
        """Return the sizes of the gates of the block.

        Args:
            group_queries: Whether the query heads that share keys and values get one gate.
        """
        size = self.queries_per_key if group_queries and self.num_key_value_heads > 1 else 1
        starts = range(0, len(self.head_slots), size)
        return [head_sizes(self, self.head_slots[start : start + size]) for start in starts]

    def norms(self) -> Tensor:
        """Return the norm of each slot, by :func:`~gating.structure.sizes.head_norms`; padding is not a head."""
        norms = head_norms(self)
        return norms * torch.tensor([slot in self.head_ids for slot in self.head_slots], device=norms.device)

    def all_but_some(self) -> tuple[int, ...]:
        """Return the heads without the first one, or the first group of query heads."""
        size = self.queries_per_key if self.num_key_value_heads > 1 else 1
        return tuple(head for head in self.head_ids if head not in self.head_slots[:size]) or self.head_ids

    @property
    def can_be_emptied(self) -> bool:
        """Whether the block can lose its last head; others keep one, whose outputs are zero."""
        return self.spec.returns in FORMS and not bool(self.spec.lends or self.spec.has_state)

    def layers(self) -> list[nn.Module]:
        """Return the projections, the output projection last."""
        return [*(linear for linear, _ in (*self.projections(), *self.other_outputs())), self.output_projection]

    def plan_removal(self, kept: Collection[int], *, keeps_slot: bool = False) -> list[Edit]:
        """Plan the removal of all heads except the kept ones, given by their original numbers.

        A block without any kept head that cannot be emptied, or that ``keeps_slot``, has one whose outputs are zero.
        """
        return plan_head_removal(self, kept, keeps_slot=keeps_slot)


def _call_padded(
    function: Callable[[Tensor], Tensor | None], width: int, head_dim: int, features: Tensor
) -> Tensor | None:
    """Call a function for heads of one width on the features of narrower heads."""
    padded = functional.pad(features.unflatten(-1, (-1, width)), (0, head_dim - width)).flatten(-2)
    result = function(padded)
    return None if result is None else result.unflatten(-1, (-1, head_dim))[..., :width].flatten(-2)


def _count_keys(
    calls: dict[str, float], layer: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]
) -> None:
    if isinstance(layer, nn.MultiheadAttention):
        keys = named["key"] if "key" in named else inputs[1]
        calls["keys"] = keys.shape[-2 if layer.batch_first or keys.dim() == 2 else 0]
    else:
        calls["keys"] = (*inputs, *named.values())[0].shape[-2]


def iter_attention_blocks(model: nn.Module) -> Iterator[AttentionBlock]:
    """Yield the modules of a model whose class, or an ancestor of it, has a spec, in their order and unchecked."""
    prefix = base_prefix(model)
    modules = dict(model.named_modules())
    order = 0
    for full_name, module in modules.items():
        spec = find_spec(module)
        parent = modules[full_name.rpartition(".")[0]]
        if spec is None:
            continue
        name = full_name.removeprefix(prefix)
        layer_idx = layer_number(name, default=order)
        block = AttentionBlock(name=name, layer_idx=layer_idx, module=module, parent=parent, spec=spec)
        if _fits(block):
            yield block.counted()
            order += 1


def _fits(block: AttentionBlock) -> bool:
    """Return whether a spec fits a module: other classes may have the same name."""
    module, spec = block.module, block.spec
    if hasattr(module, "head_slots"):
        return True
    layouts = {kind for _, layout in block.projections() for kind in layout}.union(spec.borrowed)
    needed = {"q", "k"} if spec.has_state else {"q", "k", "v"}
    return needed <= layouts and block.has(spec.output_projection) and block._width_of_head() is not None
