"""The attention blocks of a model, found by the registry of attention classes or by structure."""

from collections.abc import Mapping

from torch import Tensor, nn

from gating.discovery.discover import discover_specs
from gating.discovery.refusals import check_not_wrapped, check_stays, explain_unknown, removable_blocks
from gating.structure.blocks import AttentionBlock

__all__ = ["find_attention_blocks"]


def find_attention_blocks(
    model: nn.Module, *, discover: bool = False, probe: Mapping[str, Tensor] | None = None
) -> list[AttentionBlock]:
    """Find the attention blocks of a model, in the order of its modules.

    Args:
        model: A transformers model, or any module that holds attention classes of the registry.
        discover: Whether to search attention classes that the registry does not know by their structure, too. A layout
            found in this way is accepted only if removing heads gives the outputs of masking them on ``probe``.
        probe: A batch as the model's keyword arguments; made from its configuration when left out.

    Returns:
        One block for each attention module whose class, or a class it inherits from, is registered. A module that
        serves several layers is one block.

    Raises:
        ValueError: No attention class of the model is known, or its heads cannot be removed.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=4, intermediate_size=8)
        >>> [(block.name, block.head_ids) for block in find_attention_blocks(BertModel(config))]
        [('encoder.layer.0.attention.self', (0, 1, 2, 3)), ('encoder.layer.1.attention.self', (0, 1, 2, 3))]
    """
    check_not_wrapped(model)
    check_stays(model)
    if discover:
        discover_specs(model, probe=probe)
    blocks = removable_blocks(model)
    if not blocks:
        raise explain_unknown(model, searched=discover)
    return blocks
