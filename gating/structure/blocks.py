"""Attention blocks: the attention modules of a model, with their heads and projections."""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor, nn
from torch.nn import functional

from gating.errors import InputError
from gating.families.registry import find_spec, registered_spec
from gating.loader.changes import num_inputs, num_outputs, weight_dim, without_adapter
from gating.loader.heads import AttentionModule, kinds_of
from gating.loader.layouts import RowLayout
from gating.loader.record import base_prefix
from gating.structure.edits import Edit, Handle, Handles, hook_input
from gating.structure.hooks import ForwardHandle

__all__ = [
    "AttentionBlock",
    "AttentionKind",
    "Block",
    "UnitBlock",
    "group_labels",
    "iter_attention_blocks",
    "layer_number",
    "tower_of",
]

AttentionKind = Literal["encoder", "decoder", "cross", "self"]

_CROSS_ATTENTION = re.compile(r"(^|\.)(encoder_attn|EncDecAttention|cross_?attention|cross_?attn)(\.|$)", re.I)
_TOWERS = {
    "vision": r"vision|visual|image|(^|_)vit($|_)|pixel|video",
    "audio": r"audio|speech|sound|acoustic",
    "language": r"language|text|(^|_)(llm|lm)($|_)",
}
_TOWER = re.compile(r"(?:^|\.)(?:\w+_)?(encoder|decoder)(?:\.|$)")


class UnitBlock(Protocol):
    """Blocks of units that are gated and removed: what gates, budgets and proofs ask of a block.

    An :class:`AttentionBlock` has all of it but :meth:`plan_removal`, which is in ``removal.py``.
    """

    @property
    def unit(self) -> str:
        """Name of the unit, such as ``neurons``."""
        ...

    @property
    def registered_by(self) -> str:
        """Name of the public function that registers a layout of such blocks."""
        ...

    @property
    def name(self) -> str:
        """Dotted name, relative to the model without its task head; unique among all blocks of a model."""
        ...

    @property
    def layer_idx(self) -> int:
        """Number of the layer."""
        ...

    @property
    def module(self) -> nn.Module:
        """The module that holds all of the weights of the block's units."""
        ...

    @property
    def spec(self) -> object:
        """The layout of its weights."""
        ...

    @property
    def is_guessed(self) -> bool:
        """Whether discovery has found the layout, for which the registry has no row."""
        ...

    @property
    def kind(self) -> str:
        """Kind of the block among those of its unit, for which a budget can have a number."""
        ...

    @property
    def tower(self) -> str:
        """Part of the model that the block is in, such as ``language`` or ``vision``."""
        ...

    @property
    def unit_ids(self) -> tuple[int, ...]:
        """Original numbers of the present units, or groups of units."""
        ...

    @property
    def slot_ids(self) -> tuple[int, ...]:
        """Original numbers of the units in the slots: consecutive parts of the features, with padding if any."""
        ...

    @property
    def slot_widths(self) -> tuple[int, ...]:
        """Number of features in each slot."""
        ...

    @property
    def output_projection(self) -> nn.Module:
        """The layer whose inputs are the features; it gets the gates as its submodule ``gate``."""
        ...

    @property
    def input_weight(self) -> tuple[nn.Module, str, int]:
        """Module and name of the parameter that multiplies the features, and their dimension in it."""
        ...

    def hook_features(self, function: Callable[[Tensor], Tensor | None]) -> Handle:
        """Call a function on the features, ``[..., sum(slot_widths)]``, in each use; a result replaces them."""
        ...

    def plan_removal(self, kept: Collection[int]) -> list[Edit]:
        """Plan the removal of all units except the kept ones, given by their original numbers."""
        ...


@dataclass(frozen=True, kw_only=True)
class AttentionBlock(AttentionModule):
    """One attention module of a model with its projections.

    Attributes:
        name: Dotted name of the attention module, relative to the model without its task head.
        layer_idx: Number of the layer.
        module: The attention module, which may serve several layers.
        parent: Its parent module.
        spec: The layout of its heads.
        num_key_value_heads: Number of key-value heads; smaller than ``num_heads`` with grouped queries.
        head_dim: Width of one head in the input of the output projection.
        head_ids: Original numbers of the present (query) heads.
        head_slots: Original numbers of all heads with rows in the projections: the present ones and the padding of
            groups of query heads. The input of the output projection is ``[..., len(head_slots) * head_dim]``.
        num_heads_before: Number of heads before any removal.
    """

    unit: ClassVar[str] = "heads"
    registered_by: ClassVar[str] = "register_attention_spec"

    layer_idx: int
    num_key_value_heads: int = 0
    head_dim: int = 0
    head_ids: tuple[int, ...] = ()
    head_slots: tuple[int, ...] = ()
    num_heads_before: int = 0

    def counted(self) -> "AttentionBlock":
        """Return the block with the heads that its module has, or those that an earlier removal has noted there."""
        module: Any = self.module
        block = replace(self, head_dim=int(self.spec.width_of_head(module) or 0))
        if hasattr(module, "head_slots"):
            slots, heads, num_before = module.head_slots, module.head_ids, module.num_heads_before
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
    def num_key_value_heads_before(self) -> int:
        """Number of key-value heads before any removal."""
        return int(getattr(self.module, "num_key_value_heads_before", self.num_key_value_heads))

    @property
    def num_heads(self) -> int:
        """Number of present (query) heads, without padding."""
        return len(self.head_ids)

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
        if self.spec.has_state:
            return 0
        latent = next((linear for linear, layout in self.projections() if layout == "hkv"), None)
        if latent is not None:
            return num_inputs(latent) + int(getattr(self.module, "qk_rope_head_dim", 0))
        return self.num_key_value_heads * (self.key_dim + self.head_dim)

    @property
    def is_guessed(self) -> bool:
        """Whether discovery has found the layout; that of a loaded compact model is stored in the module, too."""
        stored = getattr(self.module, "attention_spec", None)
        return stored == self.spec != registered_spec(self.module)

    @property
    def is_cross_attention(self) -> bool:
        """Whether keys and values come from another sequence."""
        named_so = bool(_CROSS_ATTENTION.search(self.name))
        return self.spec.is_cross_attention or named_so or bool(getattr(self.module, "is_cross_attention", False))

    @property
    def kind(self) -> AttentionKind:
        """Kind of attention: ``cross``, or self-attention of the ``encoder``, the ``decoder`` or neither (``self``).

        The name of the outermost module decides: a decoder made of a BERT has an encoder inside.
        """
        if self.is_cross_attention:
            return "cross"
        tower = _TOWER.search(self.name)
        if tower is None:
            return "self"
        return "encoder" if tower.group(1) == "encoder" else "decoder"

    @property
    def tower(self) -> str:
        """Part of the model that the block is in, such as ``language`` or ``vision``; see :func:`tower_of`."""
        return tower_of(self.name)

    @property
    def input_weight(self) -> tuple[nn.Module, str, int]:
        """Module and name of the parameter that multiplies the features, and their dimension in it."""
        linear = without_adapter(self.output_projection)
        return linear, "weight", weight_dim(linear, "inputs")

    def hook_features(self, function: Callable[[Tensor], Tensor | None]) -> Handle:
        """Call a function on the outputs of the heads, ``[..., num_slots * head_dim]``, in each use of the module."""
        handle: Handle = hook_input(self.output_projection, function)
        for linear, width in self.other_outputs():
            handle = Handles(handle, hook_input(linear, partial(_call_padded, function, width, self.head_dim)))
        forward = None if self.spec.calls_projection else self.spec.forward
        return handle if forward is None else ForwardHandle(self.module, forward, handle)

    @property
    def num_parts(self) -> int:
        """Number of parts that the rows of a projection with the layout ``pqvk`` are in."""
        return int(getattr(self.module, "mp_num", 1))

    def row_runs(self, layout: RowLayout) -> list[tuple[str, int]]:
        """Return the kind and position of the head of each run of rows of a projection, in the order of the rows.

        The kind is ``q`` for rows of one query head, and ``k`` or ``v`` for those of one key-value head.
        """
        queries = [("q", head) for head in range(len(self.head_slots))]
        keys = [("k", head) for head in range(self.num_key_value_heads)]
        values = [("v", head) for head in range(self.num_key_value_heads)]
        runs = {"q": queries, "k": keys, "v": values}
        kinds = kinds_of(layout)
        if kinds in ("q", layout):
            return [run for kind in kinds for run in runs[kind]]
        num_groups = self.num_parts if layout == "pqvk" else len(keys)
        size = {kind: len(its_runs) // num_groups for kind, its_runs in runs.items()}
        return [
            run
            for group in range(num_groups)
            for kind in kinds
            for run in runs[kind][group * size[kind] : (group + 1) * size[kind]]
        ]

    def run_widths(self, linear: nn.Module, layout: RowLayout) -> list[int]:
        """Return the number of rows of each run of a projection."""
        widths = [self.run_width(linear, layout, kind) for kind, _ in self.row_runs(layout)]
        if sum(widths) != num_outputs(linear):
            raise InputError(
                f"{self.name} has a projection with {num_outputs(linear)} rows, which cannot be shared out evenly "
                f"among {len(widths)} heads: describe {type(self.module).__name__} with gating.register_attention_spec."
            )
        return widths


# Blocks with units that can be gated and removed, such as attention heads or groups of feed-forward neurons.
Block = AttentionBlock | UnitBlock


def _call_padded(
    function: Callable[[Tensor], Tensor | None], width: int, head_dim: int, features: Tensor
) -> Tensor | None:
    """Call a function for heads of one width on the features of narrower heads."""
    padded = functional.pad(features.unflatten(-1, (-1, width)), (0, head_dim - width)).flatten(-2)
    result = function(padded)
    return None if result is None else result.unflatten(-1, (-1, head_dim))[..., :width].flatten(-2)


def iter_attention_blocks(model: nn.Module) -> Iterator[AttentionBlock]:
    """Yield the modules of a model whose class, or an ancestor of it, has a spec, in the order of modules.

    Nothing is checked: :func:`~gating.discovery.find.find_attention_blocks` refuses models that cannot lose heads.
    """
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
        if _fits(block, full_name):
            yield block.counted()
            order += 1


def _fits(block: AttentionBlock, name: str) -> bool:
    """Return whether a spec fits a module: other classes may have the same name. A spec of the user has to fit."""
    module, spec = block.module, block.spec
    if hasattr(module, "head_slots"):
        return True
    layouts = {kind for _, layout in block.projections() for kind in layout}.union(spec.borrowed)
    needed = {"q", "k"} if spec.has_state else {"q", "k", "v"}
    fits = needed <= layouts and block.has(spec.output_projection) and spec.width_of_head(module) is not None
    if not fits and find_spec(module, shipped_only=True) != spec:
        paths = [*(path for path, _ in spec.projections), spec.output_projection, spec.head_dim]
        missing = [path for path in paths if isinstance(path, str) and not block.has(path)]
        raise InputError(
            f"The spec of {type(module).__name__} does not fit {name}: "
            + (f"it has no {missing[0]!r}." if missing else "its projections do not make queries, keys and values.")
        )
    return fits


def tower_of(name: str) -> str:
    """Return the tower of a block: ``language``, ``vision``, ``audio``, or else the first part of its name.

    Layers without a name of their own are those of the language model.

    Example:
        >>> tower_of("vision_tower.vision_model.encoder.layers.0.self_attn"), tower_of("layers.0.self_attn")
        ('vision', 'language')
    """
    for part in name.split("."):
        for tower, pattern in _TOWERS.items():
            if re.search(pattern, part):
                return tower
    first = name.partition(".")[0]
    return "language" if first in ("layers", "h", "layer", "blocks", "transformer", "wte") else first


def group_labels(blocks: Collection[Any]) -> list[str]:
    """Return the group of each block in a report: its kind, or its tower in a model with several kinds of input.

    A tower with several kinds of attention is several groups, such as ``language_decoder`` and ``language_cross``.
    """
    if len({block.tower for block in blocks} & _TOWERS.keys()) < 2:
        return [block.kind for block in blocks]
    kinds: dict[tuple[str, str], set[str]] = {}
    for block in blocks:
        kinds.setdefault((block.tower, block.unit), set()).add(block.kind)
    mixed = {tower for (tower, _), its_kinds in kinds.items() if len(its_kinds) > 1}
    return [f"{block.tower}_{block.kind}" if block.tower in mixed else block.tower for block in blocks]


def layer_number(name: str, *, default: int) -> int:
    """Return the first number in a dotted name, or the default."""
    number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    return int(number.group(1)) if number else default
