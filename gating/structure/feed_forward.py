"""Feed-forward blocks: projections to the intermediate width and back, with groups of neurons that can be removed.

A group of neurons is to the down projection as a head is to the output projection of attention. Between the up and the
down projection there must be nothing but an activation, a product with the gated half, and dropout.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gating.errors import InputError
from gating.families.layouts import ExpertsSpec, FeedForwardSpec, UpLayout, num_inputs, num_outputs, without_adapter
from gating.families.registry import find_feed_forward_spec, registered_feed_forward_spec, rows_of_layout
from gating.loader.modeling import base_prefix
from gating.loader.parts import ConfigView
from gating.structure.blocks import Block, layer_number, whole_number
from gating.structure.edits import Edit, plan_cut, positions
from gating.structure.experts import GROUP_FACTOR, find_experts_spec, hook_activation
from gating.structure.hooks import Handle
from gating.structure.sizes import GateSize, neuron_norms, token_counter, weight_matrix

DEFAULT_GROUP_SIZE = 64
# Names of settings with the number of experts that the router chooses.
_PER_TOKEN = ("num_experts_per_tok", "moe_topk", "moe_top_k", "top_k_experts", "moe_k")


@dataclass(frozen=True)
class FeedForwardBlock(Block):
    """The feed-forward block of a layer with its projections.

    Attributes:
        name: Dotted name of the down projection, relative to the model without its task head.
        module: The smallest module that holds all projections; in BERT, the layer itself.
        spec: The layout of its projections.
        group_size: Number of neurons in a group; the last group is smaller if the size does not divide the width.
        width_before: Number of neurons before any removal.
        group_ids: Original numbers of the present groups. Group ``g`` has the neurons from ``g * group_size`` on.
    """

    spec: FeedForwardSpec
    group_size: int
    width_before: int
    group_ids: tuple[int, ...]

    unit = "neurons"
    stored_as = "feed_forward_spec"
    gates_weight = True
    kind = "feed_forward"

    @property
    def unit_ids(self) -> tuple[int, ...]:
        """Original numbers of the present groups."""
        return self.group_ids

    @property
    def slot_widths(self) -> tuple[int, ...]:
        """Number of neurons in each present group."""
        return tuple(min(self.group_size, self.width_before - group * self.group_size) for group in self.group_ids)

    @property
    def num_numbers(self) -> int:
        """Number of groups before any removal."""
        return -(-self.width_before // self.group_size)

    @property
    def num_neurons(self) -> int:
        """Number of present neurons."""
        return sum(self.slot_widths)

    @property
    def size(self) -> int:
        """Number of present neurons."""
        return self.num_neurons

    @property
    def size_before(self) -> int:
        """Number of neurons before any removal."""
        return self.width_before

    @property
    def output_projection(self) -> nn.Module:
        """The down projection, whose input is gated."""
        return self.module.get_submodule(self.spec.down)

    @property
    def hidden_size(self) -> int:
        """Width of the output."""
        return num_outputs(self.output_projection)

    def registered_spec(self, *, shipped_only: bool = False) -> FeedForwardSpec | None:
        """Return the layout of the module in the registry, or None."""
        return registered_feed_forward_spec(self.module, shipped_only=shipped_only)

    def ups(self) -> Iterator[tuple[nn.Module, UpLayout]]:
        """Yield the linear layers that compute the intermediate features, with the layouts of their rows."""
        for path, layout in self.spec.ups:
            yield self.module.get_submodule(path), layout

    def layers(self) -> list[nn.Module]:
        """Return the projections, the down projection last."""
        return [*(up for up, _ in self.ups()), self.output_projection]

    def weights(self) -> Iterator[tuple[Tensor, int, UpLayout]]:
        """Yield the weights of the down and the up projections, their dimensions of the neurons, and their layouts."""
        yield weight_matrix(self.output_projection), 1, "plain"
        yield from ((weight_matrix(up), 0, layout) for up, layout in self.ups())

    def gate_sizes(self, *, group_queries: bool = True) -> list[GateSize]:
        """Return the size of each group."""
        macs, parameters = self.neuron_size()
        return [GateSize(width, width, width * macs, width * parameters) for width in self.slot_widths]

    def norms(self) -> Tensor:
        """Return the sum of :func:`~gating.structure.sizes.neuron_norms` of each group."""
        return torch.stack([group.sum() for group in neuron_norms(self).split(self.slot_widths)])

    def neuron_size(self) -> tuple[int, int]:
        """Return the multiply-accumulates of a neuron for one token, and its number of parameters."""
        weights, biases = num_outputs(self.output_projection), 0
        for up, layout in self.ups():
            num_rows = 1 if layout == "plain" else 2
            weights += num_rows * num_inputs(up)
            biases += num_rows * (getattr(without_adapter(up), "bias", None) is not None)
        return weights, weights + biases

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
        with suppress(TypeError):
            group_size = whole_number(group_size)
        if type(group_size) is not int or group_size < 1:
            raise InputError(f"group_size={group_size!r} must be a positive whole number of neurons, such as 64.")
        if group_size == self.group_size:
            return self
        if len(self.group_ids) == self.num_numbers:
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
        places = [present[neuron] for neuron in self.neurons(kept)]
        memory = {
            "kept_groups": tuple(sorted(kept)),
            "group_size": self.group_size,
            "width_before": self.width_before,
        }
        down = self.output_projection
        return [
            *self._plan_cuts(places, len(present)),
            *(Edit(down, name, value) for name, value in memory.items()),
            # Where a folder is loaded, rows of the user are not known.
            *([Edit(self.module, self.stored_as, self.spec)] if self.is_of_user else []),
        ]

    def _plan_cuts(self, places: list[int], width: int) -> list[Edit]:
        """Plan to keep some neurons, by their places among ``width``."""
        edits: list[Edit] = []
        for up, layout in self.ups():
            edits += plan_cut(up, positions(rows_of_layout(layout, places, width)), side="outputs")
        return [*edits, *plan_cut(self.output_projection, positions(places), side="inputs")]


@dataclass(frozen=True)
class ExpertsBlock(FeedForwardBlock):
    """The experts of a layer as one feed-forward block; a group is the same neurons in each of them."""

    spec: ExpertsSpec

    def registered_spec(self, *, shipped_only: bool = False) -> ExpertsSpec:
        """Return the layout, which names and shapes of parameters show."""
        return self.spec

    @property
    def experts_per_token(self) -> int:
        """Number of experts that compute each token: those that the router chooses, or all as in Llama 4."""
        config = getattr(self.module, "config", None)
        numbers = (getattr(config, name, None) for name in _PER_TOKEN)
        return next((number for number in numbers if type(number) is int), self.num_experts)

    @property
    def num_experts(self) -> int:
        """Number of experts in the layer."""
        return int(getattr(self.module, self.spec.down).shape[0])

    @property
    def output_projection(self) -> nn.Module:
        """The module of the experts, which holds their down projections."""
        return self.module

    @property
    def hidden_size(self) -> int:
        """Width of the output."""
        return int(getattr(self.module, self.spec.down).shape[self.spec.output_dim])

    def ups(self) -> Iterator[tuple[nn.Module, UpLayout]]:
        """Yield nothing: no layer computes the features of experts, but parameters of the module."""
        return iter(())

    def hook_calls(self, calls: dict[str, float]) -> list[Handle]:
        """Count the tokens; the experts compute each of them as often as the router has chosen for it."""
        return [self.hook_features(token_counter(calls, per_token=self.experts_per_token))]

    def weights(self) -> Iterator[tuple[Tensor, int, UpLayout]]:
        """Yield the parameters of the down and the up projections, with the dimensions and layouts of the neurons."""
        spec, find = self.spec, self.module.get_parameter
        yield find(spec.down), spec.input_dim, "plain"
        yield from ((find(name), spec.output_dim, layout) for name, layout in spec.ups)

    @property
    def input_weight(self) -> tuple[nn.Module, str, int]:
        """Module and name of the parameter that multiplies the features, and their dimension in it."""
        return self.module, self.spec.down, self.spec.input_dim

    def hook_features(self, function: Callable[[Tensor], Tensor | None]) -> Handle:
        """Call a function on the output of the activation, ``[..., num_neurons]``, in each use."""
        return hook_activation(self.module, function)

    def neuron_size(self) -> tuple[int, int]:
        """Return the multiply-accumulates of a neuron for one token, and its number of parameters in all experts."""
        num_rows = sum(1 if layout == "plain" else 2 for _, layout in self.spec.ups)
        biases = [layout for name, layout, _ in self.spec.dims(self.module) if name.endswith("_bias")]
        num_biases = sum(1 if layout == "plain" else 2 for layout in biases)
        weights = self.hidden_size * (num_rows + 1)
        return self.experts_per_token * weights, self.num_experts * (weights + num_biases)

    def regrouped(self, group_size: int) -> "FeedForwardBlock":
        """Return the same block in groups of another size; a size that is no multiple of 8 is an error, too."""
        block = super().regrouped(group_size)
        if block.group_size % GROUP_FACTOR:
            raise InputError(
                f"{self.name} has experts, whose grouped matrix products need widths that are multiples of "
                f"{GROUP_FACTOR} (strides of 16 bytes): group_size={group_size} must be one, such as "
                f"{group_size - group_size % -GROUP_FACTOR} or {DEFAULT_GROUP_SIZE}."
            )
        return block

    def _plan_cuts(self, places: list[int], width: int) -> list[Edit]:
        edits = [
            Edit(self.module, name, kept=positions(rows_of_layout(layout, places, width)), dim=dim)
            for name, layout, dim in self.spec.dims(self.module)
        ]
        edits.append(Edit(self.module, self.spec.down, kept=positions(places), dim=self.spec.input_dim))
        config = getattr(self.module, "config", None)
        if not places and hasattr(config, "_experts_implementation"):
            # Without neurons the experts give their biases. Grouped products refuse a width of zero; the batched ones
            # gather weights of size zero, so that all parameters keep a gradient.
            view = ConfigView(config, {"_experts_implementation": "batched_mm"})
            edits.append(Edit(self.module, "config", view))
        return edits


def iter_feed_forward_blocks(model: nn.Module, *, group_size: int | None = None) -> Iterator[FeedForwardBlock]:
    """Yield the feed-forward blocks of a model with a known layout, in the order of modules.

    Nothing is checked: :func:`~gating.discovery.find.find_feed_forward_blocks` refuses blocks that cannot lose neurons.
    Without a size, groups are those of an earlier removal, or have 64 neurons.
    """
    prefix = base_prefix(model)
    owners = [
        (name, module, find_experts_spec(module) or find_feed_forward_spec(module))
        for name, module in model.named_modules()
    ]
    found = [(name, module, spec, _down(module, spec)) for name, module, spec in owners if spec is not None]
    # Blocks that have lost nothing are counted in the groups of the others.
    earlier = {down.group_size for *_, down in found if hasattr(down, "kept_groups")}
    default = earlier.pop() if len(earlier) == 1 else DEFAULT_GROUP_SIZE
    for order, (owner_name, module, spec, down) in enumerate(found):
        is_experts = isinstance(spec, ExpertsSpec)
        # Adapters of parameters wrap the module itself.
        path = owner_name.replace(".base_layer", "") if is_experts else f"{owner_name}.{spec.down}"
        name = path.removeprefix(".").removeprefix(prefix)
        if hasattr(down, "kept_groups"):
            groups = down.group_size, down.width_before, down.kept_groups
        else:
            width = spec.num_neurons(module)
            groups = default, width, tuple(range(-(-width // default)))
        block_class: type[FeedForwardBlock] = ExpertsBlock if is_experts else FeedForwardBlock
        block = block_class(name, layer_number(name, default=order), module, spec, *groups)
        yield block if group_size is None else block.regrouped(group_size)


def _down(owner: nn.Module, spec: FeedForwardSpec) -> Any:
    """Return the module that has the down projection and keeps the memory of an earlier removal."""
    return owner if isinstance(spec, ExpertsSpec) else without_adapter(owner.get_submodule(spec.down))
