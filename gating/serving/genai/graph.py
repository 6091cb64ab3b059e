"""Graphs of ONNX Runtime GenAI, made by its own builder with head counts for each layer."""

import copy
import importlib
import io
import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gating.serving.contexts import checked_context
from gating.serving.genai.heads import DecoderHeads, lay_out_heads
from gating.serving.graphs.tracing import quiet_exporters

__all__ = ["DTYPES", "Dtype", "TokenIds", "build_graph"]

Dtype = Literal["f32", "int8", "int4"]
# Kinds of layers of Gemma 3, in the order in which the builder asks for their rotary tables.
_KINDS = ("full_attention", "sliding_attention")
DTYPES: tuple[str, ...] = get_args(Dtype)
_ONNX_DTYPES = {"f32": "FLOAT", "int8": "INT8", "int4": "INT4"}
# Names of sizes in the graph that depend on the counts of a layer.
_SIZES_OF_LAYER = ("sequence_length * num_attention_heads", "sequence_length * num_key_value_heads")


class TokenIds(NamedTuple):
    """Special tokens of a decoder: the first of a text, those that end it, and the one that fills rows of a batch."""

    bos: int
    eos: tuple[int, ...]
    pad: int


def build_graph(model: PreTrainedModel, folder: Path, *, builder: str, dtype: Dtype, tokens: TokenIds) -> DecoderHeads:
    """Write the graph of a decoder and its ``genai_config.json`` into a folder, and return the sizes of its heads.

    Args:
        model: A decoder in float32 with at least one key-value group in every layer; its weights are rearranged, so
            that it cannot be used any more.
        folder: An existing folder. The defaults of sampling are read from its ``generation_config.json``, if any.
        builder: Name of the class of the runtime's builder for the family.
        dtype: Type of the weights of linear layers.
        tokens: Special tokens.
    """
    with _quiet():
        ir = importlib.import_module("onnx_ir")
        base = getattr(importlib.import_module("onnxruntime_genai.models.builders"), builder)
        heads = lay_out_heads(model, interleaved=builder == "ErnieModel")
        cls = type("UnevenModel", (_UnevenDecoder, base), {"source": model, "heads": heads, "tokens": tokens})
        config = _config_for_builder(model, folder, heads)
        # Caches of windowed layers as long as the others: shorter ones reject padded batches.
        options = {"windowed_kv_cache": False}
        onnx_dtype = getattr(ir.DataType, _ONNX_DTYPES[dtype])
        graph = cls(config, ir.DataType.FLOAT, onnx_dtype, "cpu", str(folder / "cache"), options)
        if config.model_type == "gemma3_text":
            graph.model_type = config.model_type  # The runtime's name; others follow from the class.
        graph.make_model(str(folder))
        graph.save_model(str(folder))
        graph.num_attn_heads, graph.num_kv_heads = max(heads.sizes.num_heads), max(heads.sizes.num_key_value_heads)
        graph.make_genai_config(config, {}, str(folder))
    return heads


def _config_for_builder(model: PreTrainedModel, folder: Path, heads: DecoderHeads) -> Any:
    config: Any = copy.deepcopy(model.config)
    config._name_or_path = str(folder)
    config.architectures = [type(model).__name__]
    config.head_dim = heads.width
    config.max_position_embeddings = checked_context(config)[0]
    if getattr(config, "layer_types", None) is None and getattr(config, "sliding_window", None):
        # Families without this setting use the window in every layer; the builder would use it in none.
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers
    config.rope_local_base_freq = None  # Gemma 3: the builder reads this, but the tables are the model's own.
    if hasattr(config, "norm_eps"):
        config.rms_norm_eps = config.norm_eps  # Nemotron has another name.
    return config


class _UnevenDecoder:
    """Methods of the builder's classes for a decoder whose layers differ in their counts.

    The builder reads counts as attributes, one for all layers; here they are set before each layer. Scales and rotary
    tables are those of the model, not computed again from its configuration.
    """

    source: Any
    heads: DecoderHeads
    tokens: TokenIds
    # The builder sets these attributes.
    attention_attrs: dict[str, Any]
    embed_attrs: dict[str, Any]
    layernorm_attrs: dict[str, Any]
    rope_attrs: dict[str, Any]
    context_length: int

    def __init__(self, *args: Any) -> None:
        self.tables = iter(_KINDS)
        super().__init__(*args)
        if self.source.config.model_type.startswith("gemma"):
            # The builder rounds to two decimals.
            self.embed_attrs["scale"] = self.source.config.hidden_size**0.5

    def _base(self) -> Any:
        """Return the methods of the builder's class."""
        return super()

    def load_weights(self, _path: str) -> Any:
        return self.source

    def has_lm_head(self, module: Any) -> bool:
        # The builder goes by the size of the vocabulary, which a pruned layer may have by chance.
        return module is self.source.get_output_embeddings()

    def resolve_special_token_ids(self, *_: Any) -> tuple[int, list[int], int]:
        return self.tokens.bos, list(self.tokens.eos), self.tokens.pad

    def make_rope_init(self, _config: Any) -> None:
        # The width of the tables says how much of a head is rotated.
        self.rope_attrs |= {"partial_rotary_factor": 1.0, "rotary_embedding_dim": 0}

    def make_rotary_embedding_caches_from_scratch(self) -> tuple[Tensor, Tensor]:
        rotary, positions = self.source.base_model.rotary_emb, torch.arange(self.context_length)[None]
        # Gemma 3 asks for the tables of layers without and with a window, in this order.
        kind = next(self.tables)
        known = [one for one in _KINDS if hasattr(rotary, f"{one}_inv_freq")]
        # The table of a kind that no layer has is not used.
        of_layer = {"layer_type": kind if kind in known else known[0]} if known else {}
        cos, sin = rotary(torch.zeros(1), positions, **of_layer)
        return self.heads.rotary_table(cos[0], 1.0), self.heads.rotary_table(sin[0], 0.0)

    def make_attention(self, layer_id: int, attention: Any, root_input: str, **kwargs: Any) -> None:
        sizes = self.heads.sizes
        self.num_attn_heads, self.num_kv_heads = sizes.num_heads[layer_id], sizes.num_key_value_heads[layer_id]
        self.q_size, self.kv_size = self.num_attn_heads * self.heads.width, self.num_kv_heads * self.heads.width
        # SmolLM3 leaves positions out of some layers.
        self.attention_attrs |= {"scale": attention.scaling, "rope": bool(getattr(attention, "use_rope", True))}
        self._base().make_attention(layer_id, attention, root_input, **kwargs)

    def make_qk_norm(self, layer_id: int, attention: Any) -> None:
        """Make the norms of queries and keys, whose mean would count the zeros of a padded head."""
        filled, offset, epsilon = self.heads.filled, self.layernorm_attrs["add_offset"], self.layernorm_attrs["epsilon"]
        norms = {}
        for name in ("q_norm", "k_norm"):
            weight = self.heads.spread((getattr(attention, name).weight + offset) * math.sqrt(filled)) - offset
            norms[name] = SimpleNamespace(weight=weight)
        self.layernorm_attrs["epsilon"] = epsilon * filled
        self._base().make_qk_norm(layer_id, SimpleNamespace(**norms))
        self.layernorm_attrs["epsilon"] = epsilon

    def make_mlp(self, layer_id: int, mlp: Any, root_input: str) -> None:
        self.intermediate_size = mlp.down_proj.in_features
        self._base().make_mlp(layer_id, mlp, root_input)

    def make_key_value_cache_shape(self, layer_id: int, shape: list[Any]) -> list[Any]:
        batch, _, length, width = self._base().make_key_value_cache_shape(layer_id, shape)
        return [batch, self.heads.sizes.num_key_value_heads[layer_id], length, width]

    def make_value(self, name: str, dtype: Any = None, shape: Any = None) -> Any:
        if isinstance(shape, (list, tuple)):
            # ONNX Runtime reuses buffers of sizes with equal names, also of layers whose counts differ.
            counts = dict(zip(_SIZES_OF_LAYER, (self.num_attn_heads, self.num_kv_heads), strict=True))
            shape = [f"sequence_length * {counts[size]}" if size in counts else size for size in shape]
        return self._base().make_value(name, dtype, shape)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the builder's messages, and undo its changes of logging and of the import path."""
    root, path = logging.getLogger(), list(sys.path)
    handlers, level = list(root.handlers), root.level
    try:
        with quiet_exporters(), redirect_stderr(io.StringIO()), torch.no_grad():
            yield
    finally:
        sys.path[:] = path
        root.handlers[:] = handlers
        root.setLevel(level)
