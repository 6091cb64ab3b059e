"""Attention modules, and the changes of one that loses heads.

Removed are rows of the query, key and value projections, and columns of the output projection. With grouped queries,
all key-value heads serve the same number of query heads, so that removed heads may pad a group: padding keeps its query
rows, and its columns of the output projection are zero.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .changes import ABSENT, Change, num_inputs, num_outputs, shorten, shorten_layer
from .layouts import AttentionSpec, RowLayout
from .modules import COMMON_FORMS, BiasOnly, emptied, original_class, replaced_forward, subclass
from .parts import PARTS

__all__ = ["AttentionModule", "change_class", "change_counts", "empty", "kinds_of", "plan_heads"]


@dataclass(frozen=True)
class AttentionModule:
    """One attention module of a model with its projections; see the attributes of ``gating.AttentionBlock``."""

    name: str
    module: nn.Module
    parent: nn.Module
    spec: AttentionSpec
    head_dim: int
    num_key_value_heads: int
    head_slots: Sequence[int]

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


def kinds_of(layout: RowLayout) -> str:
    """Return the kinds of heads with rows in a projection: ``q``, ``k`` and ``v``."""
    return "q" if layout == "hkv" else layout.lstrip("hgp")


def plan_heads(block: AttentionModule, kept: Sequence[int], padding: Sequence[int]) -> Iterator[Change]:
    """Plan to leave a block that has all its heads with some of them, and with others as padding."""
    slots, size = sorted({*kept, *padding}), len(block.head_slots) // block.num_key_value_heads
    groups = sorted({head // size for head in slots})
    if block.spec.keeps_key_value_heads and (slots or block.spec.lends):
        groups = list(range(block.num_key_value_heads))
    if len({sum(head // size == group for head in slots) for group in groups}) > 1:
        raise ValueError(f"heads {list(kept)} with padding {list(padding)} do not fill the groups evenly")
    yield from _cut(block, slots, groups) if slots else empty(block)
    for outside in () if slots else block.projections_outside():
        yield from shorten_layer(outside, 0, "outputs")
    yield from change_counts(block, len(slots), len(groups))
    yield from change_class(block, tuple(kept), tuple(slots))


def _cut(block: AttentionModule, slots: Sequence[int], groups: Sequence[int]) -> Iterator[Change]:
    """Plan to give all parameters the shapes for some heads."""
    for linear, layout in block.projections():
        counts = {kind: len(slots if kind == "q" else groups) for kind in "qkv"}
        rows = sum(counts[kind] * block.run_width(linear, layout, kind) for kind in kinds_of(layout))
        yield from shorten_layer(linear, rows, "outputs")
    for output, width in ((block.output_projection, block.head_dim), *block.other_outputs()):
        yield from shorten_layer(output, len(slots) * width, "inputs")
    for path, dim, kept, num_before in block.per_head(slots, groups):
        owner, name = block.locate(path)
        value = getattr(owner, name)
        if isinstance(value, nn.ModuleList):
            yield owner, name, nn.ModuleList(value[head] for head in kept)
        else:
            yield shorten(owner, name, value.shape[dim] // num_before * len(kept), dim)


def empty(block: AttentionModule) -> Iterator[Change]:
    """Plan to keep only the output projection's bias: parameters without gradient stop distributed training."""
    module = block.module
    outputs = [block.locate(path) for path in (block.spec.output_projection, *block.spec.other_outputs)]
    kept = {part for owner, name in outputs for part in getattr(owner, name).modules()}
    stays = PARTS.get(f"stays {block.spec.returns}", ())
    unused = [
        name
        for name, child in module.named_children()
        if name not in stays and not kept & set(child.modules()) and next(child.parameters(), None) is not None
    ]
    own = dict(module.named_parameters(recurse=False))
    # Tables that checkpoints do not have would stay without values.
    tables = [name for name, _ in module.named_buffers(recurse=False) if name in module._non_persistent_buffers_set]
    yield from ((owner, name, BiasOnly.replacing(getattr(owner, name))) for owner, name in outputs)
    if isinstance(module, nn.MultiheadAttention):
        # Models initialize these by name, so that buffers without rows take their places. Undone, they come back in the
        # order of the names.
        yield from ((module, name, ABSENT) for name in reversed(own))
        yield from ((module, name, nn.Buffer(own[name].detach()[:0].clone())) for name in own)
    else:
        yield from ((module, name, None) for name in (*unused, *own, *tables))
    # from_pretrained would initialize projections that are gone.
    yield module, "_is_hf_initialized", True


def change_counts(block: AttentionModule, num_slots: int, num_groups: int) -> Iterator[Change]:
    """Plan the update of the counts that a module keeps beside its weights."""
    module = block.module
    values: dict[str, Any] = {path: num_slots for path in block.spec.head_counts if num_slots or path[0] != "^"}
    values |= dict.fromkeys(block.spec.head_widths, num_slots * block.head_dim)
    values |= dict.fromkeys(("num_key_value_heads", "num_kv_heads", "num_k_heads"), num_groups)
    values |= dict.fromkeys(block.spec.key_widths, num_groups * block.key_dim)
    values["num_key_value_groups"] = num_slots // num_groups if num_groups else 1
    values["mp_num"] = 1
    yield from ((*block.locate(path), value) for path, value in values.items() if block.has(path))
    if block.spec.config_counts:
        yield module, "config", PARTS["config_view"](module.config, dict.fromkeys(block.spec.config_counts, num_slots))


def change_class(block: AttentionModule, heads: tuple[int, ...], slots: tuple[int, ...]) -> Iterator[Change]:
    """Plan to change a module's class where its ``forward`` would fail, and to note its heads and its slots."""
    module, spec = block.module, block.spec
    maker: Callable[..., dict[str, Any]] | None = None
    arguments: tuple[Any, ...] = ()
    if not slots and spec.returns != "forward":
        form = "state" if spec.has_state else spec.returns
        maker, arguments = emptied, (form, None if form in COMMON_FORMS else PARTS[f"emptied {form}"])
    elif spec.returns == "t5":
        maker = PARTS["shared_bias"]
    elif spec.per_head_inputs:
        maker, arguments = PARTS["sliced_inputs"], (spec.per_head_inputs,)
    elif spec.forward is not None:
        maker, arguments = replaced_forward, (spec.forward,)
    head_index: object = ABSENT
    if slots and (spec.returns == "t5" or spec.per_head_inputs):
        # Persistent, because from_pretrained builds models without values and fills in those of the file.
        head_index = nn.Buffer(torch.tensor(slots, device=next(module.parameters()).device))
    if len(heads) < len(slots):
        is_kept = tuple(head in heads for head in slots)
        maker, arguments = PARTS["padded"], (maker, arguments, is_kept, block.head_dim, spec.output_projection)
        masked = subclass(type(block.output_projection), PARTS["silenced"], is_kept, block.head_dim)
        yield block.output_projection, "__class__", masked
    elif slots:
        yield block.output_projection, "__class__", original_class(type(block.output_projection))
    cls = original_class(type(module)) if maker is None else subclass(type(module), maker, *arguments)
    # Hooks may have changed the class for as long as they are there.
    if cls is not type(module) or not spec.calls_projection:
        yield module, "__class__", cls
    before = {"num_heads_before": len(block.head_slots), "num_key_value_heads_before": block.num_key_value_heads}
    memory = {name: getattr(module, name, number) for name, number in before.items()}
    memory |= {"head_ids": heads, "head_slots": slots}
    yield from ((module, name, value) for name, value in (("head_index", head_index), *memory.items()))
