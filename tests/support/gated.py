"""Gated models in tests."""

from torch import nn

import gating
from tests.support.tiny_models import NUM_HEADS, NUM_LAYERS

# Heads of a tiny model.
TOTAL = NUM_LAYERS * NUM_HEADS


def without_dropout(model):
    """Make training mode deterministic but for the gates."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    for name in ("attention_probs_dropout_prob", "attention_dropout", "hidden_dropout_prob"):
        if hasattr(model.config, name):
            setattr(model.config, name, 0.0)
    return model


def seen_scales(model, batch):
    """Return the factors of every output projection's input in one forward pass, block by block."""
    scales = []
    blocks = gating.find_attention_blocks(model)
    inputs = {}

    def before(module, args):
        inputs[module] = args[0]

    def after(module, args):
        scales.append((args[0] / inputs[module]).detach())

    handles = [block.output_projection.register_forward_pre_hook(before, prepend=True) for block in blocks]
    handles += [block.output_projection.register_forward_pre_hook(after) for block in blocks]
    try:
        model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return scales


def has_padding(model):
    """Return whether a model has padding heads."""
    return any(block.head_slots != block.head_ids for block in gating.find_attention_blocks(model))


def num_kept(gates, objective):
    """Return the number of heads that the objective's kept gates stand for."""
    kept = objective.kept(gates).tolist()
    return sum(heads for heads, is_kept in zip(gates.counts["heads"], kept, strict=True) if is_kept)
