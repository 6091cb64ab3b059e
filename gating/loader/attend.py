"""Functions of attention for the forward passes that replace those of transformers, where these need all heads."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

__all__ = ["attend", "attend_eagerly", "split_heads"]


def split_heads(module: Any, *projected: Tensor) -> list[Tensor]:
    """Split features into heads, ``[batch, heads, length, head_dim]``."""
    return [features.unflatten(-1, (-1, module.head_dim)).transpose(1, 2) for features in projected]


def attend(
    module: Any, queries: Tensor, keys: Tensor, values: Tensor, *, scaling: float, dropout: float = 0.0, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attend by the implementation that a model is set to; return values as :func:`attend_eagerly`."""
    function: Any = ALL_ATTENTION_FUNCTIONS.get(module.config._attn_implementation, attend_eagerly)
    result: tuple[Tensor, Tensor | None] = function(
        module, queries, keys, values, **{"attention_mask": None, **kwargs}, scaling=scaling, dropout=dropout
    )
    return result


def attend_eagerly(
    module: Any,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **_kwargs: object,
) -> tuple[Tensor, Tensor]:
    """Return the outputs of the heads, ``[batch, length, heads, head_dim]``, and the probabilities.

    The ``dropout`` is that in training.
    """
    scores = queries * scaling @ keys.transpose(-1, -2)
    probabilities = torch.softmax(scores if attention_mask is None else scores + attention_mask, dim=-1)
    return (functional.dropout(probabilities, dropout, module.training) @ values).transpose(1, 2), probabilities
