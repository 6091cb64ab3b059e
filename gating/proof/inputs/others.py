"""Further inputs, which few models take: boxes of words, series, states of a game."""

from collections.abc import Callable

import torch

from gating.proof.inputs.sizes import Request, Variant
from gating.proof.inputs.texts import make_tokens

__all__ = ["OTHERS"]


def _boxes(request: Request, _argument: str) -> Variant:
    """Return the boxes of words, ``[batch_size, length, 4]``, of coordinates that grow."""
    length = make_tokens(request).shape[1]
    sizes = request.setting("dim_bbox")
    most = 100 if sizes is None else 1
    corners = request.integers(0, max(1, most // 2), request.batch_size, length, 2)
    extents = request.integers(1, max(2, most // 2), request.batch_size, length, 2)
    boxes = torch.cat([corners, corners + extents], -1)
    if sizes is None:
        return {"bbox": boxes}
    return {"bbox": torch.cat([boxes, boxes], -1)[..., :sizes].float()}


def _series(request: Request, argument: str) -> Variant:
    """Return the past values of a series, with their features of time and their mask."""
    config = request.model.config
    channels = request.setting("num_input_channels", "input_size") or 1
    lags = max(getattr(config, "lags_sequence", None) or [0])
    context = request.setting("context_length", "seq_length") or 16
    steps = context + lags
    shape = (request.batch_size, steps) if channels == 1 and lags else (request.batch_size, steps, channels)
    made: Variant = {argument: request.random(*shape)}
    if "past_time_features" in request.accepted:
        made["past_time_features"] = request.random(request.batch_size, steps, max(1, config.num_time_features))
        made["past_observed_mask"] = torch.ones(*shape)
        if "future_values" in request.accepted:
            future = config.prediction_length
            made["future_values"] = request.random(request.batch_size, future, *shape[2:])
            made["future_time_features"] = request.random(request.batch_size, future, max(1, config.num_time_features))
    return made


def _states(request: Request, _argument: str) -> Variant:
    """Return the states, actions and rewards of a game, ``[batch_size, length, size]``."""
    config, rows, length = request.model.config, request.batch_size, request.length
    return {
        "states": request.random(rows, length, config.state_dim),
        "actions": request.random(rows, length, config.act_dim),
        "rewards": request.random(rows, length, 1),
        "returns_to_go": request.random(rows, length, 1),
        "timesteps": torch.arange(length).expand(rows, -1).clone(),
        "attention_mask": torch.ones(rows, length, dtype=torch.long),
    }


def _embeddings(request: Request, argument: str) -> Variant:
    """Return vectors of the hidden size, ``[batch_size, length, hidden_size]``."""
    size = request.setting("hidden_size", "d_model")
    return {argument: request.random(request.batch_size, request.length, size)}


def _tokens(request: Request, argument: str) -> Variant:
    return {argument: make_tokens(request)}


# The maker of each argument, called with the request and the argument's name.
OTHERS: dict[str, Callable[[Request, str], Variant]] = {
    "bbox": _boxes,
    "past_values": _series,
    "states": _states,
    "query_embeds": _embeddings,
    "encoder_hidden_states": _embeddings,
    "qformer_input_ids": _tokens,
    "task_inputs": _tokens,
}
