"""Attention without any head, for runtimes that need a head in every layer: one head that does nothing instead."""

from collections.abc import Collection, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gating.loader.checksums import RECORD_KEY
from gating.loader.modeling import base_prefix
from gating.loader.record import describe, renamed
from gating.proof.conditions import check_no_adapters, check_whole
from gating.pruning.layers import build_recorded
from gating.structure.attention import AttentionBlock, iter_attention_blocks
from gating.structure.edits import apply_edits

__all__ = ["with_dummy_heads"]


def with_dummy_heads(model: PreTrainedModel, names: Collection[str] | None = None) -> PreTrainedModel:
    """Return a copy of a compact model in which each self-attention block has at least one key-value group.

    An emptied block gets the first head of the original model again, with its own key and value: its weights and biases
    are zero, and so are its columns of the output projection, whose bias stays. A layer that uses the keys of another
    one gets a head for each of them. Outputs are equal, and no head is counted as kept.

    Args:
        model: The model, whole and without adapters; it stays as it is, and shares all other tensors with the copy.
        names: Names of the emptied self-attention blocks to change, as
            :func:`~gating.discovery.find.find_attention_blocks` has them; all of them by default.

    Returns:
        The copy, in evaluation mode; the model itself if no block is to change.

    Raises:
        ValueError: The model has adapters or is sharded.
    """
    check_whole(model, remedy="gather it first, or load the compact folder in one process")
    check_no_adapters(model)
    emptied = {
        block.name: block
        for block in iter_attention_blocks(model)
        if not block.head_slots and not block.is_cross_attention
    }
    dummy = list(emptied if names is None else names)
    if not dummy:
        return model
    copy = _build(model, [emptied[name] for name in dummy])
    _fill(copy, model)
    for block in iter_attention_blocks(copy):
        if block.name in dummy and isinstance(getattr(block.module, "head_index", None), Tensor):
            block.module.head_index = torch.tensor(block.head_slots, device=model.device)
    if getattr(model, "generation_config", None) is not None:
        copy.generation_config = deepcopy(model.generation_config)
    copy.eval()
    return copy


def _build(model: PreTrainedModel, emptied: Sequence[AttentionBlock]) -> PreTrainedModel:
    """Build the copy without values: blocks that get dummy heads are dense in its record, and lose all but these."""
    config, record, prefix = deepcopy(model.config), describe(model), base_prefix(model)
    modules = {module for block in emptied for module in (*block.module.modules(), *block.layers())}
    names = {name.removeprefix(prefix) for name, module in model.named_modules() if module not in modules}
    setattr(config, RECORD_KEY, renamed(record, {name: name for name in names}))
    copy = build_recorded(model, config)
    blocks = {block.name: block for block in iter_attention_blocks(copy)}
    apply_edits([edit for block in emptied for edit in blocks[block.name].plan_removal((), keeps_slot=True)])
    return copy


def _fill(copy: PreTrainedModel, model: PreTrainedModel) -> None:
    """Give a copy without values the tensors of a model where both have them in one shape, and zeros elsewhere."""
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    places = [*copy.named_parameters(remove_duplicate=False), *copy.named_buffers(remove_duplicate=False)]
    for name, empty in places:
        owner, _, attribute = name.rpartition(".")
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != empty.shape:
            zeros = torch.zeros_like(empty, device=model.device)
            tensor = nn.Parameter(zeros) if isinstance(empty, nn.Parameter) else zeros
        setattr(copy.get_submodule(owner), attribute, tensor)
