"""Ranking of heads and neurons by their weights: the structured form of magnitude pruning."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gating.gates import HeadGates
from gating.structure.blocks import AttentionBlock
from gating.structure.edits import Features, parameter_names, whole, without_adapter
from gating.structure.feed_forward import ExpertsBlock, FeedForwardBlock
from gating.structure.removal import Selection, rows_of

__all__ = ["Magnitude", "head_norms", "neuron_norms"]


class Magnitude(nn.Module):
    """A ranking by the L1 norm of the weights of each head at the time of a round.

    ``torch.nn.utils.prune.ln_structured`` with ``n=1`` ranks the rows of one layer in this way; this class ranks the
    heads of all layers, by :func:`head_norms`, and groups of neurons, by :func:`neuron_norms`. Norms of different
    layers are compared without normalization; those of neurons, and of heads beside them, are divided by the number of
    parameters.

    Example:
        >>> from gating import inject_gates
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> Magnitude().scores(inject_gates(model)).shape
        torch.Size([8])
    """

    def attach(self, gates: HeadGates) -> None:
        """Change nothing: the weights are read at each round."""

    @torch.no_grad()
    def scores(self, gates: HeadGates) -> Tensor:
        """Return the mean norm of the heads of each gate, ``[num_gates]``; with neurons, the mean of its parameters."""
        device = gates.log_alpha.device
        sums = []
        for block, size in zip(gates.blocks(), gates.block_sizes, strict=True):
            if isinstance(block, FeedForwardBlock):
                norms = neuron_norms(block)
                sums.append(torch.stack([group.sum() for group in norms.split(block.slot_widths)]).to(device))
                continue
            norms = head_norms(block)
            # Slots that pad groups of query heads are not heads.
            is_head = torch.tensor([slot in block.head_ids for slot in block.head_slots], device=norms.device)
            sums.append((norms * is_head).view(size, -1).sum(dim=1).to(device))
        if gates.units == ("heads",):
            return torch.cat(sums) / torch.tensor(gates.heads_per_gate, device=device).clamp_min(1)
        return torch.cat(sums) / gates.parameters_per_gate.float().to(device)

    def start_over(self, gates: HeadGates) -> None:
        """Change nothing: there are no statistics."""


def head_norms(block: AttentionBlock) -> Tensor:
    """Return the L1 norm of the weights of each head of a block, without biases.

    These are the head's rows of the query, key and value projections and its columns of the output projection. Shared
    keys and values count in equal parts for the query heads that share them.

    Returns:
        Norm of each of ``block.head_slots``, ``[num_slots]``, float32.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from gating.discovery.find import find_attention_blocks
        >>> config = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=4, intermediate_size=8)
        >>> head_norms(find_attention_blocks(BertModel(config))[0]).shape
        torch.Size([4])
    """
    slots, groups = range(len(block.head_slots)), range(block.num_key_value_heads)
    size = len(slots) // len(groups)
    columns = _weight(block.output_projection).T
    norms = torch.stack([_norm(columns, Features([slot], block.head_dim)) for slot in slots])
    for linear, layout in block.projections():
        weight = _weight(linear)
        own = [_norm(weight, rows_of(block, linear, layout, _only(slots=[slot]))) for slot in slots]
        shared = [_norm(weight, rows_of(block, linear, layout, _only(groups=[group]))) for group in groups]
        norms = norms + torch.stack(own) + torch.stack(shared).repeat_interleave(size) / size
    return norms


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
        norms = _sums(_weight(block.output_projection), 1)
        ups = [(_sums(_weight(linear), 0), layout) for linear, layout in block.ups()]
    for rows, layout in ups:
        by_neuron = rows.view(2, -1).sum(dim=0) if layout == "halves" else rows
        by_neuron = rows.view(-1, 2).sum(dim=1) if layout == "pairs" else by_neuron
        norms = norms + by_neuron.to(norms.device)
    return norms


def _sums(weight: Tensor, dim: int) -> Tensor:
    """Return the L1 norm of each entry of one dimension."""
    others = [other for other in range(weight.dim()) if other != dim]
    return whole(weight).abs().sum(dim=others, dtype=torch.float32)


def _only(*, slots: Sequence[int] = (), groups: Sequence[int] = ()) -> Selection:
    return Selection(slots=tuple(slots), key_values=tuple(groups), heads=(), head_slots=())


def _weight(linear: nn.Module) -> Tensor:
    """Return the weight as ``[outputs, inputs]``, without that of an adapter."""
    linear = without_adapter(linear)
    weight = getattr(linear, parameter_names(linear)[0])
    assert isinstance(weight, Tensor)
    weight = whole(weight)
    return weight.T if isinstance(linear, Conv1D) else weight


def _norm(weight: Tensor, rows: Features) -> Tensor:
    return weight.index_select(0, rows.index().to(weight.device)).abs().sum(dtype=torch.float32)
