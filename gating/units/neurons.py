"""Feed-forward neurons as a unit, in groups."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gating.discovery.find import search_feed_forward
from gating.families.feed_forward import find_feed_forward_spec
from gating.structure.blocks import Block
from gating.structure.edits import whole
from gating.structure.feed_forward import ExpertsBlock, FeedForwardBlock, iter_feed_forward_blocks
from gating.structure.hooks import Handle
from gating.units.heads import weight_matrix
from gating.units.unit import Calls, GateSize, Metrics, Unit, has_foreign_classes, token_counter

__all__ = ["NEURONS", "Neurons", "neuron_norms"]


class Neurons(Unit[FeedForwardBlock]):
    """Feed-forward neurons: a gate stands for a group of them, which are intermediate features of a block."""

    name = "neurons"
    singular = "neuron"
    full_name = "neuron"
    label = "feed-forward"
    gated = "groups of neurons"
    metrics = Metrics(
        "gates/neurons/expected", "gates/neurons/open", "gates/neurons/target", "gates/feed_forward_{:02d}/open"
    )
    is_weighed = True
    gates_weight = True
    why_inexact = (
        "a gate stands for a group of {} neurons",
        "make smaller groups with ",
        "inject_gates(model, group_size=...).",
        "gates.group_size.",
    )
    # With neurons, it was better in a run at twice the speed on each of three data sets.
    gate_lr = 0.2

    blocks = staticmethod(iter_feed_forward_blocks)
    search = staticmethod(search_feed_forward)

    def size(self, block: FeedForwardBlock) -> int:
        """Return the number of present neurons."""
        return block.num_neurons

    def size_before(self, block: FeedForwardBlock) -> int:
        """Return the number of neurons before any removal."""
        return block.width_before

    def num_numbers(self, block: FeedForwardBlock) -> int:
        """Return the number of groups before any removal."""
        return block.num_groups_before

    def kept(self, model: nn.Module, before: Mapping[str, Block]) -> dict[str, tuple[int, ...]]:
        """Return the groups, in their size before, of the blocks that could lose neurons or have lost some."""
        sizes = {name: block.group_size for name, block in before.items() if isinstance(block, FeedForwardBlock)}
        return {
            block.name: block.regrouped(sizes.get(block.name, block.group_size)).group_ids
            for block in self.blocks(model)
            if block.name in sizes or block.num_neurons < block.width_before
        }

    def gate_sizes(self, block: FeedForwardBlock, *, group_queries: bool = True) -> list[GateSize]:
        """Return the size of each group."""
        macs, parameters = block.neuron_size()
        return [GateSize(width, width, width * macs, width * parameters) for width in block.slot_widths]

    def norms(self, block: FeedForwardBlock) -> Tensor:
        """Return the sum of :func:`neuron_norms` of each group."""
        return torch.stack([group.sum() for group in neuron_norms(block).split(block.slot_widths)])

    def is_foreign(self, block: FeedForwardBlock) -> bool:
        """Return whether the block has a class from elsewhere, or a layout that the registry lacks."""
        is_known = isinstance(block, ExpertsBlock)
        shipped = block.spec if is_known else find_feed_forward_spec(block.module, shipped_only=True)
        return shipped != block.spec or has_foreign_classes(block.module)

    def hook_calls(self, block: FeedForwardBlock, calls: Calls) -> list[Handle]:
        """Count the tokens; experts compute each of them as often as the router has chosen for it."""
        return [block.hook_features(token_counter(calls, per_token=block.experts_per_token))]


NEURONS = Neurons()


def neuron_norms(block: FeedForwardBlock) -> Tensor:
    """Return the L1 norm of the weights of each neuron of a block, without biases.

    These are the neuron's rows of the up projections and its column of the down projection; of all experts, if any.

    Returns:
        Norm of each present neuron, ``[num_neurons]``, float32.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from gating.discovery.find import find_feed_forward_blocks
        >>> config = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=4, intermediate_size=12)
        >>> neuron_norms(find_feed_forward_blocks(BertModel(config))[0]).shape
        torch.Size([12])
    """
    if isinstance(block, ExpertsBlock):
        norms = _sums(block.module.get_parameter(block.spec.down), block.spec.input_dim)
        ups = [
            (_sums(block.module.get_parameter(name), block.spec.output_dim), layout) for name, layout in block.spec.ups
        ]
    else:
        norms = _sums(weight_matrix(block.output_projection), 1)
        ups = [(_sums(weight_matrix(linear), 0), layout) for linear, layout in block.ups()]
    for rows, layout in ups:
        by_neuron = rows.view(2, -1).sum(dim=0) if layout == "halves" else rows
        by_neuron = rows.view(-1, 2).sum(dim=1) if layout == "pairs" else by_neuron
        norms = norms + by_neuron.to(norms.device)
    return norms


def _sums(weight: Tensor, dim: int) -> Tensor:
    """Return the L1 norm of each entry of one dimension."""
    others = [other for other in range(weight.dim()) if other != dim]
    return whole(weight).abs().sum(dim=others, dtype=torch.float32)
