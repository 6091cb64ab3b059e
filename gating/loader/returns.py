"""Return values of attention without any head, of classes that return other than the output and the probabilities."""

from typing import Any

from torch import Tensor
from torch.nn import functional

from .modules import EmptiedCall

__all__ = ["PARTS"]


def _asked(call: EmptiedCall) -> tuple[Tensor, ...]:
    output, probabilities = call.output(), call.probabilities()
    return (output, probabilities) if call.arguments.get("output_attentions") else (output,)


def _as_list(call: EmptiedCall) -> list[Tensor]:
    return list(_asked(call))


def _albert(call: EmptiedCall) -> tuple[Tensor, Tensor]:
    return call.module.LayerNorm(call.hidden_states + call.output()), call.probabilities()


def _funnel(call: EmptiedCall) -> tuple[Tensor, ...]:
    output, *others = _asked(call)
    return call.module.layer_norm(call.hidden_states + output), *others


def _residual(call: EmptiedCall) -> tuple[Tensor, Tensor]:
    output = functional.dropout(call.output(), call.module.hidden_dropout, call.module.training)
    return call.arguments["residual"] + output, call.probabilities()


def _cache(call: EmptiedCall) -> tuple[Tensor, Tensor, Any]:
    return call.output(), call.probabilities(), call.arguments.get("cache")


def _state(call: EmptiedCall) -> Tensor:
    """Answer as linear attention, which puts a state into its cache: models ask its last layer whether there is one."""
    if call.cache is not None:
        states, layer_idx = call.hidden_states, call.module.layer_idx
        zeros = states.new_zeros(states.shape[0], 1, states.shape[1])
        call.cache.update_conv_state(zeros, layer_idx, conv_kernel_size=1)
        call.cache.update_recurrent_state(zeros.new_zeros(len(zeros), 1, 1, 1), layer_idx)
    return call.output()


def _contexts(call: EmptiedCall) -> tuple[Tensor, ...]:
    first, second = (call.features(value) for value in list(call.arguments.values())[:2])
    asked = (call.probabilities(),) if call.arguments.get("output_attentions") else ()
    return (first, second, *asked)


def _two_pairs(call: EmptiedCall) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    others = list(call.arguments.values())[1]
    probabilities = call.probabilities().flatten(0, 1)
    return (call.output(), probabilities), (call.output(others, index=1), probabilities.transpose(1, 2))


def _longformer(call: EmptiedCall) -> tuple[Tensor, ...]:
    """Answer as attention in sliding windows, with probabilities of no head if they are asked for."""
    features = call.features()
    if not call.arguments.get("output_attentions"):
        return (features,)
    rows, length = features.shape[:2]
    in_windows, of_global = features.new_zeros(rows, length, 0, 1), features.new_zeros(rows, 0, 1, length)
    return (features, in_windows, of_global) if call.arguments.get("is_global_attn") else (features, in_windows)


# Forms of what an emptied block returns, and modules of it that remain in use: norms that end the block.
PARTS = {
    "emptied mpnet": _asked,
    "emptied list": _as_list,
    "emptied albert": _albert,
    "emptied funnel": _funnel,
    "emptied residual": _residual,
    "emptied cache": _cache,
    "emptied state": _state,
    "emptied contexts": _contexts,
    "emptied two pairs": _two_pairs,
    "emptied longformer": _longformer,
    "stays albert": ("LayerNorm",),
    "stays funnel": ("layer_norm",),
}
