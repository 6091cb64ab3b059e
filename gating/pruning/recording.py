"""Compact and original models, built without memory from a configuration with a record."""

from copy import deepcopy

import torch
from transformers import PreTrainedConfig, PreTrainedModel, initialization

from gating.loader.checksums import RECORD_KEY
from gating.loader.record import LAYERS_KEY, dense_class, dense_config
from gating.loader.saving import compact_class
from gating.pruning.layer_settings import changed
from gating.structure.blocks import share_specs

__all__ = ["build_original", "build_recorded"]


def build_recorded(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """Build the compact model of a configuration with a record, without memory; its blocks have their former sizes."""
    cls = compact_class(dense_class(model), type(config))
    with torch.device("meta"), initialization.no_init_weights():
        built: PreTrainedModel = cls._from_config(deepcopy(config), dtype=model.dtype)
    return built


def build_original(
    model: PreTrainedModel, config: PreTrainedConfig, *, device: str | torch.device = "meta"
) -> PreTrainedModel:
    """Build the dense model of a configuration with a record: all heads and neurons, and random weights.

    Args:
        model: The compact or stock model, whose dtype it gets.
        config: The configuration of the compact model, or that of :func:`~gating.compact.original.read_original`.
        device: Its device; on ``meta``, it has no weights.
    """
    former = getattr(config, RECORD_KEY, {}).get(LAYERS_KEY, {}).get("config", {})
    with torch.device(device):
        original = changed(dense_config(config), former)
        built: PreTrainedModel = dense_class(model)._from_config(original, dtype=model.dtype)
    share_specs(model, built)
    return built
