"""Blocks and lists of layers of a model: which there are, their numbers in the original model, and which are empty."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel

from gating.loader.modeling import RECORD_KEY, base_prefix
from gating.loader.record import LAYERS_KEY
from gating.structure.attention import iter_attention_blocks
from gating.structure.blocks import Block, layer_number
from gating.structure.feed_forward import iter_feed_forward_blocks
from gating.units import UnitName

Value = TypeVar("Value")


def iter_blocks(model: nn.Module, *units: UnitName, group_size: int | None = None) -> Iterator[Block]:
    """Yield the blocks of a known layout that have one of some units, or any, unchecked; attention blocks first."""
    if not units or "heads" in units:
        yield from iter_attention_blocks(model)
    if not units or "neurons" in units:
        yield from iter_feed_forward_blocks(model, group_size=group_size)


def count_units(model: nn.Module, unit: UnitName) -> int:
    """Return the number of present units of a model; 0 if its blocks are not known."""
    return sum(block.size for block in iter_blocks(model, unit))


@dataclass(frozen=True)
class LayerList:
    """A list of layers that a model calls one after another, with the blocks of each.

    The ``name`` is relative to the model without its task head, as names of blocks are; the ``full_name`` is not.
    """

    name: str
    full_name: str
    layers: nn.ModuleList
    blocks: tuple[tuple[Block, ...], ...]

    def empty(self) -> list[int]:
        """Return the numbers of the layers whose blocks have lost every unit."""
        return [number for number, blocks in enumerate(self.blocks) if blocks and not any(b.unit_ids for b in blocks)]


def find_layer_lists(model: nn.Module) -> list[LayerList]:
    """Return the lists of layers with attention or feed-forward blocks of a known layout, in the order of modules.

    Of lists in lists, as the stages of a Swin or the parts of a T5 layer, it is the innermost one with a layer of
    several blocks.
    """
    blocks: dict[nn.Module, Block] = {}
    for block in iter_blocks(model):
        blocks.setdefault(block.output_projection, block)
    lists: dict[str, tuple[nn.ModuleList, list[tuple[Block, ...]]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            members = [tuple(blocks[part] for part in layer.modules() if part in blocks) for layer in module]
            if any(members):
                lists[name] = module, members
    several = {name for name, (_, members) in lists.items() if max(map(len, members)) > 1}
    prefix, found = base_prefix(model), []
    for name, (module, members) in lists.items():
        inside = [other for other in lists if other.startswith(f"{name}.")]
        outside = [other for other in lists if name.startswith(f"{other}.")]
        if not several.intersection(inside) if name in several else not outside:
            found.append(LayerList(name.removeprefix(prefix), name, module, tuple(members)))
    return found


def count_layers(model: nn.Module) -> int:
    """Return the number of layers in the lists of a model."""
    return sum(len(found.layers) for found in find_layer_lists(model))


def layers_record(model: nn.Module) -> dict[str, Any]:
    """Return the entries on layers that left from the records in a module; an empty table if none did.

    Names are relative to the module, as those of blocks are: around a model of transformers, they are longer.
    """
    if isinstance(model, PreTrainedModel):
        record = getattr(model.config, RECORD_KEY, None) or {}
        return dict(record.get(LAYERS_KEY) or {})
    found: dict[str, Any] = {}
    for child_name, child in model.named_children():
        start = f"{child_name}.{base_prefix(child) if isinstance(child, PreTrainedModel) else ''}"
        for key, table in layers_record(child).items():
            found.setdefault(key, {}).update({f"{start}{name}": value for name, value in table.items()})
    return found


def kept_layers(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the original numbers of the present layers of each list of a module that layers have left."""
    return {name: tuple(numbers) for name, numbers in layers_record(model).get("kept", {}).items()}


def dense_name(record: Mapping[str, Any], name: str) -> str:
    """Return the name of a block in the original model, from its name in one that layers have left."""
    for path, kept in record.get("kept", {}).items():
        if found := re.match(rf"{re.escape(path)}\.(\d+)(?=\.|$)", name):
            return f"{path}.{kept[int(found[1])]}{name[found.end() :]}"
    return name


def original_rows(
    record: Mapping[str, Any], unit: str, rows: Iterable[tuple[str, Value]], *, removed: Callable[[int], Value]
) -> Iterator[tuple[str, Value]]:
    """Yield values of blocks by their names in the original model, with those of layers that left in their places.

    The ``record`` is of :func:`layers_record`; ``removed`` makes the value of a block that left of its former number of
    units.
    """
    named = [(dense_name(record, name), value) for name, value in rows]
    gone = [(name, removed(size)) for name, size in record.get(unit, {}).items()]
    paths: dict[str, int] = {}

    def place(row: tuple[str, Value]) -> tuple[int, int]:
        path = re.split(r"(?:^|\.)\d+(?:\.|$)", row[0], maxsplit=1)[0]
        return paths.setdefault(path, len(paths)), layer_number(row[0], default=0)

    yield from sorted([*named, *gone], key=place) if gone else named
