"""Attention blocks: the attention modules of a model with their heads, and the removal of some of them.

Removed are rows of the query, key and value projections, and columns of the output projection. With grouped queries,
all key-value heads serve the same number of query heads, their group. A group therefore cannot shrink alone: groups
without any head are removed, and the others shrink to the size of the largest. Removed heads pad them; padding keeps
its query rows, and its columns of the output projection are zero.
"""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional

from gating.errors import InputError
from gating.families.layouts import RowLayout
from gating.families.linear import num_inputs, num_outputs
from gating.families.registry import find_spec, registered_spec
from gating.loader.emptied import FORMS
from gating.loader.modeling import base_prefix
from gating.structure.attention_edits import kinds_of, plan_class, plan_counts, plan_emptying
from gating.structure.blocks import Block, layer_number
from gating.structure.edits import Edit, Features, plan_cut, plan_entries
from gating.structure.hooks import ForwardHandle, Handle, Handles, hook_input

__all__ = ["AttentionBlock", "AttentionKind", "iter_attention_blocks"]

AttentionKind = Literal["encoder", "decoder", "cross", "self"]

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

    unit: ClassVar[str] = "heads"
    registered_by: ClassVar[str] = "register_attention_spec"

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

    def projections_outside(self) -> list[nn.Module]:
        """Return the projections that are not in the module itself."""
        inside = set(self.module.modules())
        return [linear for linear, _ in self.projections() if linear not in inside]

    def per_head(self, slots: Sequence[int], groups: Sequence[int]) -> Iterator[tuple[str, int, Sequence[int], int]]:
        """Yield paths and dimensions of parameters with entries for each head, those to keep, and their number now."""
        for pairs, kept, num_before in (
            (self.spec.per_head, slots, len(self.head_slots)),
            (self.spec.per_key_value_head, groups, self.num_key_value_heads),
        ):
            yield from ((path, dim, kept, num_before) for path, dim in pairs if self.has(path))

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

    def run_width(self, linear: nn.Module, layout: RowLayout, kind: str) -> int:
        """Return the number of rows that one head has in a projection as query, key or value."""
        kinds = kinds_of(layout)
        if self.key_dim != self.head_dim and len(set(kinds)) > 1:
            return self.key_dim if kind in ("k" if self.spec.has_state else "qk") else self.head_dim
        num_runs = sum(len(self.head_slots) if one == "q" else self.num_key_value_heads for one in kinds)
        return num_outputs(linear) // num_runs

    def counted(self) -> "AttentionBlock":
        """Return the block with the heads that its module has, or those that an earlier removal has noted there."""
        module: Any = self.module
        block = replace(self, head_dim=int(self.spec.width_of_head(module) or 0))
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
    def num_key_value_heads_before(self) -> int:
        """Number of key-value heads before any removal."""
        return int(getattr(self.module, "num_key_value_heads_before", self.num_key_value_heads))

    @property
    def queries_per_key(self) -> int:
        """Number of query heads, padding included, that share one key-value head."""
        number, rest = divmod(len(self.head_slots), self.num_key_value_heads)
        if rest:
            raise InputError(
                f"{self.name} has {len(self.head_slots)} query heads for {self.num_key_value_heads} key-value heads, "
                "which cannot be shared out evenly: correct num_attention_heads or num_key_value_heads in the model's "
                "configuration."
            )
        return number

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
        if (latent := self._latent) is not None:
            return num_inputs(latent) + int(getattr(self.module, "qk_rope_head_dim", 0))
        return self.num_key_value_heads * self.head_cache_width

    @property
    def head_cache_width(self) -> int:
        """Number of values that a decoder caches for each token and key-value head; 0 where these share a latent."""
        return 0 if self.spec.has_state or self._latent is not None else self.key_dim + self.head_dim

    @property
    def _latent(self) -> nn.Module | None:
        """The projection from the latent of which latent attention makes keys and values."""
        return next((linear for linear, layout in self.projections() if layout == "hkv"), None)

    @property
    def is_guessed(self) -> bool:
        """Whether discovery has found the layout; that of a loaded compact model is stored in the module, too."""
        stored = getattr(self.module, "attention_spec", None)
        return bool(stored == self.spec != registered_spec(self.module))

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

    def hook_features(self, function: Callable[[Tensor], Tensor | None]) -> Handle:
        """Call a function on the outputs of the heads, ``[..., num_slots * head_dim]``, in each use of the module."""
        handle: Handle = hook_input(self.output_projection, function)
        for linear, width in self.other_outputs():
            handle = Handles(handle, hook_input(linear, partial(_call_padded, function, width, self.head_dim)))
        forward = None if self.spec.calls_projection else self.spec.forward
        return handle if forward is None else ForwardHandle(self.module, forward, handle)

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
        num_groups = int(getattr(self.module, "mp_num", 1)) if layout == "pqvk" else len(keys)
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

    def rows_of(
        self, linear: nn.Module, layout: RowLayout, slots: Collection[int], groups: Collection[int]
    ) -> Features:
        """Return the rows of a projection that belong to the heads in some slots, and to some key-value heads."""
        heads = {"q": slots, "k": groups, "v": groups}
        kinds = self.row_runs(layout)
        runs = [i for i, (kind, head) in enumerate(kinds) if head in heads[kind]]
        if layout == "pqvk":
            # Parts of different sizes would need another forward; without parts, the class's own serves.
            runs.sort(key=lambda i: "qvk".index(kinds[i][0]))
        widths = self.run_widths(linear, layout)
        if len(set(widths)) == 1:
            return Features(runs, widths[0])
        ends = list(accumulate(widths))
        return Features([row for i in runs for row in range(ends[i] - widths[i], ends[i])], 1)

    def layers(self) -> list[nn.Module]:
        """Return the projections, the output projection last."""
        return [*(linear for linear, _ in (*self.projections(), *self.other_outputs())), self.output_projection]

    def staying(self, kept: Collection[int], *, keeps_slot: bool = False) -> tuple[list[int], list[int]]:
        """Return the positions of the slots and of the key-value heads that stay if some heads are kept.

        In each group that stays, the first removed heads are padding, as many as it lacks to the size of the largest.
        Without any kept head, the first one pads the first group, unless the block can be emptied, and ``keeps_slot``
        is false.
        """
        if not kept and self.can_be_emptied and not keeps_slot:
            return [], []
        size = self.queries_per_key
        counts = [
            sum(head in kept for head in self.head_slots[start : start + size])
            for start in range(0, len(self.head_slots), size)
        ]
        groups = [group for group, count in enumerate(counts) if count or self.spec.keeps_key_value_heads] or [0]
        slots: list[int] = []
        for group in groups:
            kept_first = sorted(
                range(group * size, (group + 1) * size), key=lambda slot: self.head_slots[slot] not in kept
            )
            slots += sorted(kept_first[: max(1, *counts)])
        return slots, groups

    def plan_removal(self, kept: Collection[int], *, keeps_slot: bool = False) -> list[Edit]:
        """Plan the removal of all heads except the kept ones, given by their original numbers.

        A block without any kept head that cannot be emptied, or that ``keeps_slot``, has one whose outputs are zero.

        Example:
            >>> from transformers import BertConfig, BertModel
            >>> from gating import find_attention_blocks
            >>> model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=4))
            >>> for edit in find_attention_blocks(model)[0].plan_removal([0, 3]):
            ...     edit.apply()
            >>> model.encoder.layer[0].attention.self.query
            Linear(in_features=8, out_features=4, bias=True)
        """
        heads = tuple(head for head in self.head_ids if head in kept)
        if heads == self.head_ids:
            return []
        slots, groups = self.staying(heads, keeps_slot=keeps_slot)
        return [
            *(self._plan_cuts(slots, groups, heads) if slots else self._plan_emptying()),
            *plan_counts(self, len(slots), len(groups)),
            *plan_class(self, heads, tuple(self.head_slots[slot] for slot in slots)),
            # Where a folder is loaded, rows of the user are not known.
            *([Edit(self.module, "attention_spec", self.spec)] if self._is_of_user else []),
        ]

    @property
    def _is_of_user(self) -> bool:
        return bool(find_spec(self.module, shipped_only=True) != self.spec)

    @property
    def can_be_emptied(self) -> bool:
        """Whether the block can lose its last head; others keep one, whose outputs are zero."""
        return self.spec.returns in FORMS and not bool(self.spec.lends or self.spec.has_state)

    def _plan_cuts(self, slots: Sequence[int], groups: Sequence[int], heads: Collection[int]) -> list[Edit]:
        edits: list[Edit] = []
        for linear, layout in self.projections():
            edits += plan_cut(linear, self.rows_of(linear, layout, slots, groups), side="outputs")
        padding = [position for position, slot in enumerate(slots) if self.head_slots[slot] not in heads]
        columns, silent = Features(slots, self.head_dim), Features(padding, self.head_dim)
        edits += plan_cut(self.output_projection, columns, side="inputs", silent=silent)
        for other, width in self.other_outputs():
            edits += plan_cut(other, Features(slots, width), side="inputs", silent=Features(padding, width))
        for path, dim, stay, num_before in self.per_head(slots, groups):
            edits.append(plan_entries(*self.locate(path), stay, dim=dim, num_before=num_before))
        return edits

    def _plan_emptying(self) -> list[Edit]:
        nothing = Features([], 1)
        outputs = [self.output_projection, *(linear for linear, _ in self.other_outputs())]
        return [
            *(edit for linear in outputs for edit in plan_cut(linear, nothing, side="inputs")),
            *(edit for linear in self.projections_outside() for edit in plan_cut(linear, nothing, side="outputs")),
            *plan_emptying(self, outputs),
        ]


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
