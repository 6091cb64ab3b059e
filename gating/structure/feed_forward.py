"""Feed-forward blocks: projections to the intermediate width and back, with groups of neurons that can be removed.

A group of neurons is to the down projection as a head is to the output projection of attention. Between the up and the
down projection there must be nothing but an activation, a product with the gated half, and dropout.
"""

import operator
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

from .blocks import AttentionBlock, base_prefix, layer_number
from .edits import Edit, Features, SetAttribute, num_inputs, num_outputs, plan_cut, without_adapter
from .errors import InputError
from .feed_forward_specs import FeedForwardSpec, UpLayout, find_feed_forward_spec

__all__ = ["DEFAULT_GROUP_SIZE", "Block", "FeedForwardBlock", "iter_feed_forward_blocks"]

DEFAULT_GROUP_SIZE = 64


@dataclass(frozen=True)
class FeedForwardBlock:
    """The feed-forward block of a layer with its projections.

    Attributes:
        name: Dotted name of the down projection, relative to the model without its task head.
        layer_idx: Number of the layer.
        module: The smallest module that holds all projections; in BERT, the layer itself.
        spec: The layout of its projections.
        group_size: Number of neurons in a group; the last group is smaller if the size does not divide the width.
        width_before: Number of neurons before any removal.
        group_ids: Original numbers of the present groups. Group ``g`` has the neurons from ``g * group_size`` on.
    """

    name: str
    layer_idx: int
    module: nn.Module
    spec: FeedForwardSpec
    group_size: int
    width_before: int
    group_ids: tuple[int, ...]

    kind = "feed_forward"

    @property
    def unit_ids(self) -> tuple[int, ...]:
        """Original numbers of the present groups."""
        return self.group_ids

    @property
    def slot_ids(self) -> tuple[int, ...]:
        """Original numbers of the groups with inputs of the down projection: the present ones."""
        return self.group_ids

    @property
    def slot_widths(self) -> tuple[int, ...]:
        """Number of neurons in each present group."""
        return tuple(min(self.group_size, self.width_before - group * self.group_size) for group in self.group_ids)

    @property
    def num_groups_before(self) -> int:
        """Number of groups before any removal."""
        return -(-self.width_before // self.group_size)

    @property
    def num_neurons(self) -> int:
        """Number of present neurons."""
        return sum(self.slot_widths)

    @property
    def output_projection(self) -> nn.Module:
        """The down projection, whose input is gated."""
        return self.module.get_submodule(self.spec.down)

    def ups(self) -> Iterator[tuple[nn.Module, UpLayout]]:
        """Yield the linear layers that compute the intermediate features, with the layouts of their rows."""
        for path, layout in self.spec.ups:
            yield self.module.get_submodule(path), layout

    def neurons(self, groups: Collection[int]) -> list[int]:
        """Return the original numbers of the neurons in some groups."""
        size = self.group_size
        starts = [group * size for group in sorted(groups)]
        return [neuron for start in starts for neuron in range(start, min(start + size, self.width_before))]

    def regrouped(self, group_size: int) -> "FeedForwardBlock":
        """Return the same block in groups of another size.

        Raises:
            ValueError: The size is not positive, or neurons were removed in groups that it does not divide.
        """
        group_size = _check_group_size(group_size)
        if group_size == self.group_size:
            return self
        if len(self.group_ids) == self.num_groups_before:
            return replace(self, group_size=group_size, group_ids=tuple(range(-(-self.width_before // group_size))))
        if self.group_ids and self.group_size % group_size:
            raise InputError(
                f"Neurons of {self.name} were removed in groups of {self.group_size}, which group_size={group_size} "
                f"does not divide: give group_size={self.group_size}, or a divisor of it."
            )
        present = {neuron // group_size for neuron in self.neurons(self.group_ids)}
        return replace(self, group_size=group_size, group_ids=tuple(sorted(present)))

    def plan_removal(self, kept: Collection[int]) -> list[Edit]:
        """Plan the removal of all groups except the kept ones, given by their original numbers.

        A block without any group keeps linear layers of width zero, so that every parameter still gets a gradient; its
        output is the bias of the down projection.
        """
        kept = set(kept) & set(self.group_ids)
        if kept == set(self.group_ids):
            return []
        present = {neuron: position for position, neuron in enumerate(self.neurons(self.group_ids))}
        positions = [present[neuron] for neuron in self.neurons(kept)]
        edits: list[Edit] = []
        for path, layout in self.spec.ups:
            rows = Features(_rows(layout, positions, len(present)), 1)
            edits += _plan_cut(self.module, path, rows, side="outputs")
        cut = _plan_cut(self.module, self.spec.down, Features(positions, 1), side="inputs")
        # The memory belongs to the layer that is in the place of an emptied one.
        replaced = [edit.value for edit in cut if isinstance(edit, SetAttribute) and isinstance(edit.value, nn.Module)]
        down = replaced[0] if replaced else self.output_projection
        memory = {
            "kept_groups": tuple(sorted(kept)),
            "group_size": self.group_size,
            "width_before": self.width_before,
        }
        return [*edits, *cut, *(SetAttribute(down, name, value) for name, value in memory.items())]


# Blocks with units that can be gated and removed: attention heads, or groups of feed-forward neurons.
Block = AttentionBlock | FeedForwardBlock


def iter_feed_forward_blocks(model: nn.Module, *, group_size: int | None = None) -> Iterator[FeedForwardBlock]:
    """Yield the feed-forward blocks of a model with a known layout, in the order of modules.

    Nothing is checked: :func:`~gating.discovery.find.find_feed_forward_blocks` refuses blocks that cannot lose neurons.

    Args:
        model: Any module.
        group_size: Number of neurons in a group; if left out, that of an earlier removal, or 64.

    Raises:
        ValueError: ``group_size`` does not fit an earlier removal.
    """
    prefix = base_prefix(model)
    owners = [(name, module, find_feed_forward_spec(module)) for name, module in model.named_modules()]
    found = [(name, module, spec) for name, module, spec in owners if spec is not None]
    # Blocks that have lost nothing are counted in the groups of the others.
    downs = [_down(module, spec) for _, module, spec in found]
    earlier = {down.group_size for down in downs if hasattr(down, "kept_groups")}
    default = earlier.pop() if len(earlier) == 1 else DEFAULT_GROUP_SIZE
    for order, (owner_name, module, spec) in enumerate(found):
        name = f"{owner_name}.{spec.down}".removeprefix(".").removeprefix(prefix)
        block = _describe(name, layer_number(name, default=order), module, spec, default)
        yield block if group_size is None else block.regrouped(group_size)


def _down(owner: nn.Module, spec: FeedForwardSpec) -> Any:
    return without_adapter(owner.get_submodule(spec.down))


def _describe(
    name: str, layer_idx: int, module: nn.Module, spec: FeedForwardSpec, default_size: int
) -> FeedForwardBlock:
    down = _down(module, spec)
    if hasattr(down, "kept_groups"):
        return FeedForwardBlock(name, layer_idx, module, spec, down.group_size, down.width_before, down.kept_groups)
    width = num_inputs(down)
    groups = tuple(range(-(-width // default_size)))
    return FeedForwardBlock(name, layer_idx, module, spec, default_size, width, groups)


def _check_group_size(group_size: Any) -> int:
    """Return a group size as a Python integer; integers of NumPy and PyTorch are accepted."""
    try:
        number = 0 if isinstance(group_size, bool) else operator.index(group_size)
    except TypeError:
        number = 0
    if number < 1:
        raise InputError(f"group_size={group_size!r} must be a positive whole number of neurons, such as 64.")
    return number


def _rows(layout: UpLayout, positions: list[int], width: int) -> list[int]:
    """Return the output rows of an up projection for neurons at some of its present positions."""
    if layout == "halves":
        return [*positions, *(width + position for position in positions)]
    if layout == "pairs":
        return [row for position in positions for row in (2 * position, 2 * position + 1)]
    return positions


def _plan_cut(owner: nn.Module, path: str, kept: Features, *, side: Literal["inputs", "outputs"]) -> list[Edit]:
    """Plan to keep some inputs or outputs of a layer; a Conv1D of width zero becomes a linear layer."""
    layer = owner.get_submodule(path)
    if len(kept) or not isinstance(layer, Conv1D):
        return plan_cut(layer, kept, side=side)
    holder, _, attribute = path.rpartition(".")
    return [SetAttribute(owner.get_submodule(holder), attribute, _empty_linear(layer, side=side))]


def _empty_linear(layer: Conv1D, *, side: Literal["inputs", "outputs"]) -> nn.Linear:
    """Return a linear layer without inputs or outputs: the forward pass of a Conv1D cannot infer such a shape."""
    num_in, num_out = (0, num_outputs(layer)) if side == "inputs" else (num_inputs(layer), 0)
    # Built with another shape, since initializing weights without elements gives a warning.
    linear = nn.Linear(1, 1, device="meta")
    linear.in_features, linear.out_features = num_in, num_out
    weight, bias = layer.weight, layer.bias
    linear.weight = nn.Parameter(weight.detach().new_empty(num_out, num_in), requires_grad=weight.requires_grad)
    linear.bias = bias if num_out else nn.Parameter(bias.detach()[:0].clone(), requires_grad=bias.requires_grad)
    return linear.train(layer.training)
