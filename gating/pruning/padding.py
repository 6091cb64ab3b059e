"""Padding heads: removed heads that stay in place to fill up their group of query heads."""

from torch import Tensor, nn

from gating.families.linear import weight_dim, without_adapter
from gating.structure.attention import iter_attention_blocks
from gating.structure.edits import fill, positions, whole

__all__ = ["silence_padding"]


def silence_padding(model: nn.Module) -> None:
    """Set the output projection's columns of padding heads to zero again, in place.

    Training keeps these columns at zero, because their inputs are zero (see
    :func:`~gating.loader.padding.silenced`). Call this function after other changes of the weights, such as a
    merged adapter.

    Args:
        model: A model whose heads were pruned.

    Example:
        >>> from gating import prune_heads
        >>> from transformers import LlamaConfig, LlamaModel
        >>> sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 10}
        >>> model = LlamaModel(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes))
        >>> report = prune_heads(model, {0: [0]})  # heads 0 and 1 share keys and values
        >>> weight = nn.init.ones_(model.layers[0].self_attn.o_proj.weight)
        >>> silence_padding(model)
        >>> (weight == 0).all(dim=0).sum().item()
        4
    """
    for block in iter_attention_blocks(model):
        if block.head_slots == block.head_ids:
            continue
        padding = [slot for slot, head in enumerate(block.head_slots) if head not in block.head_ids]
        _silence_inputs(block.output_projection, positions(padding, block.head_dim))


def _silence_inputs(linear: nn.Module, inputs: Tensor) -> None:
    """Set the weight of some inputs of a layer to zero, in place."""
    linear = without_adapter(linear)
    weight = linear.weight
    assert isinstance(weight, nn.Parameter)
    fill(weight, whole(weight.detach()).index_fill(weight_dim(linear, "inputs"), inputs.to(weight.device), 0.0))
