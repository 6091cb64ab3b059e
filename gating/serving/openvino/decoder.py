"""Decoders in OpenVINO: a graph whose state is the key-value cache, and the tokens that it writes."""

import importlib
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from gating.errors import InputError
from gating.serving.greedy import TOLERANCES, check_alone_and_in_batch, make_prompts

__all__ = ["check_decoder", "check_layers", "convert_decoder"]

# Number of tokens of a prompt that are read at once.
_PIECE = 512
_KINDS = {"full_attention", "sliding_attention"}


def check_layers(model: PreTrainedModel) -> None:
    """Raise ``ValueError`` if a layer attends to other tokens than all earlier ones or those of a window."""
    others = sorted(set(getattr(model.config, "layer_types", None) or ()) - _KINDS)
    if others:
        raise InputError(
            f"{type(model).__name__} has layers of the kind {others[0]!r}, whose masks or states are not exported to "
            "OpenVINO."
        )


class _Step(nn.Module):
    """One forward pass of a decoder, whose cache is an input and an output."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        accepted = inspect.signature(model.forward).parameters
        positions = ["position_ids"] if "position_ids" in accepted else []
        self.names = ["input_ids", "attention_mask", *positions, "beam_idx"]
        self.cache_name = "cache" if "cache" in accepted else "past_key_values"

    def forward(self, *tensors: Any) -> tuple[Tensor, ...]:
        given = dict(zip(self.names, tensors, strict=False))
        rows = given.pop("beam_idx")
        past = [tensor.index_select(0, rows) for tensor in tensors[len(self.names) :]]
        given["attention_mask"] = self._masks(given["attention_mask"], given["input_ids"], past[0].shape[2])
        outputs = self.model(**given, **{self.cache_name: _cache_of(past)}, use_cache=True)
        layers = outputs[self.cache_name].layers
        return (outputs.logits, *(tensor for layer in layers for tensor in (layer.keys, layer.values)))

    def _masks(self, real: Tensor, tokens: Tensor, past_length: Any) -> Any:
        """Return additive masks, ``[batch, 1, length, total length]``, of all layers or for each kind of layers.

        Masks of truth values would make NaN of rows that are only padding.
        """
        config: Any = self.model.config
        query, key = torch.arange(tokens.shape[1])[:, None] + past_length, torch.arange(real.shape[1])[None]
        seen = (key <= query)[None, None] & real[:, None, None].bool()
        window = getattr(config, "sliding_window", None)
        if window is None:
            return _additive(seen)
        in_window = _additive(seen & (key > query - window)[None, None])
        if getattr(config, "layer_types", None) is None:
            return in_window
        return {"full_attention": _additive(seen), "sliding_attention": in_window}


def _additive(seen: Tensor) -> Tensor:
    return torch.zeros(()).masked_fill(~seen, torch.finfo(torch.float32).min)


def _cache_of(past: Sequence[Tensor]) -> DynamicCache:
    """Return a cache with keys and values; concatenating to an empty one would not be converted."""
    cache = DynamicCache()
    for keys, values in zip(past[::2], past[1::2], strict=True):
        layer: Any = DynamicLayer()
        layer.keys, layer.values, layer.is_initialized = keys, values, True
        layer.dtype, layer.device = keys.dtype, keys.device
        cache.layers.append(layer)
    return cache


def convert_decoder(openvino: Any, model: PreTrainedModel) -> Any:
    """Return a decoder as an OpenVINO model that keeps its key-value cache as state.

    Its inputs are those of optimum-intel and of ``openvino_genai.LLMPipeline``: ``input_ids``, ``attention_mask``,
    ``position_ids`` and ``beam_idx``, which orders the rows of the cache.
    """
    step = _Step(model)
    past = _example_cache(step)
    rows, length, past_length = 2, 4, past[0].shape[2]
    example = {
        "input_ids": torch.ones(rows, length, dtype=torch.int64),
        "attention_mask": torch.ones(rows, past_length + length, dtype=torch.int64),
        "position_ids": (past_length + torch.arange(length)).expand(rows, -1),
        "beam_idx": torch.arange(rows, dtype=torch.int32),
    }
    converted = openvino.convert_model(step, example_input=(*(example[name] for name in step.names), *past))
    states = {f"past.{i}": f"present.{i}" for i in range(len(past))}
    shapes = [[-1] * example[name].dim() for name in step.names]
    shapes += [[-1, tensor.shape[1], -1, tensor.shape[3]] for tensor in past]
    for port, name, shape in zip(converted.inputs, (*step.names, *states), shapes, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_partial_shape(openvino.PartialShape(shape))
    for port, name in zip(converted.outputs, ("logits", *states.values()), strict=True):
        port.get_tensor().set_names({name})
    converted.validate_nodes_and_infer_types()
    transformations: Any = importlib.import_module("openvino._offline_transformations")
    transformations.apply_make_stateful_transformation(converted, states)
    _start_empty(converted)
    return converted


def _example_cache(step: _Step) -> list[Tensor]:
    """Return keys and values of each layer after a few tokens, ``[2, groups, 3, head_dim]``."""
    cache: Any = DynamicCache()
    step.model(input_ids=torch.ones(2, 3, dtype=torch.int64), **{step.cache_name: cache}, use_cache=True)
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def _start_empty(converted: Any) -> None:
    """Let states start without tokens, with as many rows as the input."""
    ops: Any = importlib.import_module("openvino.opset13")
    shape = ops.shape_of(converted.input("input_ids"), output_type="i64")
    rows = ops.gather(shape, ops.constant([0]), ops.constant(0))
    for op in converted.get_ops():
        if op.get_type_name() == "ReadValue":
            _, *sizes = op.get_output_partial_shape(0)
            fixed = [0 if size.is_dynamic else size.get_length() for size in sizes]
            start = ops.concat([rows, ops.constant(np.array(fixed, dtype=np.int64))], axis=0)
            op.set_arguments([ops.broadcast(ops.constant(0.0, dtype=op.get_output_element_type(0)), start)])
    converted.validate_nodes_and_infer_types()


def check_decoder(
    compiled: Any, model: PreTrainedModel, *, dtype: str, pad_token_id: int, context: int | None = None
) -> list[str]:
    """Compare the tokens that OpenVINO writes, alone and in a batch, with a decoder's own; return sentences.

    Raises:
        RuntimeError: OpenVINO writes other tokens than the decoder.
    """
    prompts, count = make_prompts(model, context=context)
    return check_alone_and_in_batch(
        model,
        prompts,
        lambda rows: _write(compiled, rows, count, pad_token_id),
        tolerance=TOLERANCES[dtype],
        runtime="OpenVINO",
        side="left",
    )


def _write(compiled: Any, prompts: Sequence[Sequence[int]], count: int, pad_token_id: int) -> list[list[int]]:
    """Return the tokens with the largest logits after prompts that are padded on the left."""
    names = {port.any_name for port in compiled.inputs}
    longest, request = max(map(len, prompts)), compiled.create_infer_request()
    tokens = np.array([[pad_token_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = np.array([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    steps, rows = [], np.arange(len(prompts), dtype=np.int32)
    for _ in range(count):
        positions, begin = np.maximum(mask.cumsum(-1) - 1, 0), mask.shape[1] - tokens.shape[1]
        # Long prompts in pieces, as the logits of all tokens take memory.
        for start in range(begin, mask.shape[1], _PIECE):
            piece = slice(start, start + _PIECE)
            given = {
                "input_ids": tokens[:, start - begin : start - begin + _PIECE],
                "attention_mask": mask[:, : start + _PIECE],
                "position_ids": positions[:, piece],
                "beam_idx": rows,
            }
            logits = request.infer({name: value for name, value in given.items() if name in names})["logits"]
        tokens = logits[:, -1:].argmax(-1)
        mask = np.concatenate([mask, np.ones_like(mask[:, :1])], axis=1)
        steps.append(tokens[:, 0])
    written: list[list[int]] = np.stack(steps, axis=1).tolist()
    return written
