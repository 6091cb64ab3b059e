"""Configurations with head counts of each layer for vLLM: transformers would build the dense model with them."""

import copy

from .classes import MIXINS

__all__ = ["WithoutLayerCounts"]

# No class of transformers has the first by itself.
_LAYER_COUNTS = ("allow_global_per_layer_attribute_access", "per_layer_config", "_heterogeneity_spec")


class WithoutLayerCounts:
    """Methods of a compact model whose configuration has head counts of each layer."""

    def __init__(self, config: object, *args: object, **kwargs: object) -> None:
        """Build the model as the record in ``config`` says, whatever the counts of layers are."""
        config = copy.copy(config)
        for name in _LAYER_COUNTS if vars(config).get(_LAYER_COUNTS[0]) and hasattr(config, "head_gating") else ():
            vars(config).pop(name, None)
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]


MIXINS.append(WithoutLayerCounts)
