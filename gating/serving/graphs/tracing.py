"""The state of a model, and of torch, while a graph is traced."""

import functools
import gc
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

import torch
import torch._dynamo.config
import torch.fx.config
from torch import Tensor
from transformers import PreTrainedModel

from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from gating.serving.graphs.check import TOLERANCE

__all__ = ["as_exported", "pooled", "quick_tracing", "quiet_exporters"]


@contextmanager
def as_exported(model: Any) -> Iterator[None]:
    """Disable the key-value cache, and let decoders that generate compute position ids from the attention mask.

    ``generate`` computes them outside of the forward pass, which a graph does not contain.
    """
    use_cache, forward = getattr(model.config, "use_cache", None), model.forward

    @functools.wraps(forward)
    def forward_with_positions(**inputs: Any) -> Any:
        if "attention_mask" in inputs:
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        return forward(**inputs)

    needs_positions = _takes_positions_of_generate(model)
    model.config.use_cache = False
    try:
        with _forward_of(model, forward_with_positions) if needs_positions else nullcontext():
            yield
    finally:
        model.config.use_cache = use_cache


@contextmanager
def _forward_of(model: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Give a model another forward pass in a ``with`` block."""
    own = vars(model).get("forward")
    model.forward = forward
    try:
        yield
    finally:
        vars(model).pop("forward", None)
        if own is not None:
            model.forward = own


def _takes_positions_of_generate(model: Any) -> bool:
    """Return whether a model is a decoder of text whose position ids count real tokens from 0."""
    return (
        model.main_input_name == "input_ids"
        and model.can_generate()
        and not model.config.is_encoder_decoder
        # Models of text with images compute position ids in another way.
        and model.config.get_text_config() is model.config
        and "position_ids" in inspect.signature(model.forward).parameters
        and _counts_from_zero(model)
    )


def _counts_from_zero(model: PreTrainedModel) -> bool:
    """Return whether a model's position ids start at 0; those of RoBERTa start after the padding index."""
    batch = make_probe(model)
    tokens = batch["input_ids"]
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    outputs = [forward_outputs(model, inputs) for inputs in (batch, {**batch, "position_ids": positions})]
    return max_relative_difference(*outputs) < TOLERANCE


@contextmanager
def pooled(model: Any, head: Callable[..., Tensor] | None) -> Iterator[None]:
    """Let a model return also the embeddings of texts, ``sentence_embedding``, in a ``with`` block.

    Args:
        model: The model.
        head: Function of its outputs and the attention mask; None to leave the outputs as they are.
    """
    if head is None:
        yield
        return
    forward = model.forward

    @functools.wraps(forward)
    def forward_with_pooling(**inputs: Any) -> Any:
        outputs = dict(forward(**inputs))
        return {**outputs, "sentence_embedding": head(outputs, inputs["attention_mask"])}

    with _forward_of(model, forward_with_pooling):
        yield


@contextmanager
def quick_tracing() -> Iterator[None]:
    """Leave out work of torch that costs a fifth of the time of tracing and is of no use to an export.

    With dynamic shapes, the cache of operations on tensors without values costs more than it saves. The stack trace of
    each operation would also put the paths of source files into the graph. The garbage collector walks over a graph
    that only grows.
    """
    collects, traces = gc.isenabled(), torch.fx.config.do_not_emit_stack_traces
    gc.disable()
    torch.fx.config.do_not_emit_stack_traces = True
    try:
        with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
            yield
    finally:
        torch.fx.config.do_not_emit_stack_traces = traces
        if collects:
            gc.enable()


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Silence the progress, the log and the warnings of exporters, which are about their own code, in a ``with`` block.

    Their loggers have no common name. The check of an export finds what matters.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(disabled)
