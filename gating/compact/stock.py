"""Stock models: a dense architecture of transformers with smaller sizes that a compact model fits exactly.

Where every layer keeps equally many units, the configuration alone describes the model, and no record is needed. Fields
of the configuration are found by their values, and accepted only if the dense class, built without memory from the
changed configuration, has every tensor of the model in its shape.
"""

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, initialization

from gating.errors import RemedyError
from gating.loader.modeling import base_prefix
from gating.loader.record import dense_class, dense_config
from gating.structure.attention import AttentionBlock, iter_attention_blocks
from gating.structure.feed_forward import FeedForwardBlock, iter_feed_forward_blocks
from gating.units import unit_of

__all__ = ["HEADS", "KEY_VALUE_HEADS", "StockError", "may_be_stock", "new_width", "stock_model"]

_Block = AttentionBlock | FeedForwardBlock
# Path of a nested configuration, and values of its fields.
_Change = tuple[tuple[str, ...], Mapping[str, object]]


class StockError(RemedyError):
    """A compact model that no configuration of its dense architecture describes."""


def may_be_stock(model: PreTrainedModel) -> bool:
    """Return whether blocks of one stack and kind have equally many units; others fit no configuration."""
    blocks: list[_Block] = [*iter_attention_blocks(model), *iter_feed_forward_blocks(model)]
    sizes: dict[tuple[str, str, int], set[int]] = {}
    for block in blocks:
        # A configuration has fields for the encoder and for the decoder.
        stack = re.split(r"(^|\.)\d+(\.|$)", block.name)[0]
        sizes.setdefault((stack, block.kind, _size_before(block)), set()).add(_size(block))
    return all(len(found) == 1 for found in sizes.values())


def stock_model(model: PreTrainedModel) -> PreTrainedModel:
    """Return a dense model with the weights of a compact one, for a folder that plain transformers loads.

    The result shares memory with the model, and its buffers that are not saved have no values: it is only to be saved.

    Args:
        model: A model whose layers keep equally many units of each kind; it stays as it is.

    Raises:
        StockError: The configuration class cannot describe the model; the message names the reason.

    Example:
        >>> from gating import prune_neurons
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=2, intermediate_size=32)
        >>> model = BertModel(config)
        >>> report = prune_neurons(model, {0: [1], 1: [0]}, group_size=8)
        >>> stock_model(model).config.intermediate_size
        24
    """
    cls = dense_class(model)
    if getattr(transformers, cls.__name__, None) is not cls:
        raise _refusal(model, f"{cls.__name__} is not a class of transformers")
    attention, feed_forward = list(iter_attention_blocks(model)), list(iter_feed_forward_blocks(model))
    blocks: list[_Block] = [*attention, *feed_forward]
    _check_without_padding(model, blocks)
    state, config = _dense_state(model, attention), dense_config(model.config)
    search = _Search(cls, {name: tuple(tensor.shape) for name, tensor in state.items()})
    config, differing = search.run(config, list(_changes(config, attention, feed_forward)))
    if differing:
        raise _explain(model, blocks, differing)
    stock = search.build(config)
    stock.load_state_dict(state, assign=True)
    stock.tie_weights()
    if getattr(model, "generation_config", None) is not None:
        stock.generation_config = copy.deepcopy(model.generation_config)
    return stock


class _Search:
    """A search for the configuration of a dense class whose model has given shapes.

    Fields are changed one after another as long as fewer tensors differ; fields of different layers affect different
    tensors, so that no combination has to be tried.
    """

    def __init__(self, dense_class: type[PreTrainedModel], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Args: ``shapes`` are those of the state dict."""
        self.dense_class, self.shapes = dense_class, shapes

    def run(self, config: PreTrainedConfig, changes: Sequence[_Change]) -> tuple[PreTrainedConfig, set[str]]:
        """Return the configuration that was found, and the names of the tensors that still differ."""
        differing, before = self.compare(config), set[str]()
        while differing and differing != before:
            before = differing
            for change in changes:
                changed = _apply(config, change)
                found = self.compare(changed)
                if changed is not None and len(found) < len(differing):
                    config, differing = changed, found
        return config, differing

    def build(self, config: PreTrainedConfig) -> PreTrainedModel:
        """Build the dense model without memory."""
        with torch.device("meta"), initialization.no_init_weights():
            model: PreTrainedModel = self.dense_class(copy.deepcopy(config))
        return model

    def compare(self, config: PreTrainedConfig | None) -> set[str]:
        """Return the names of the tensors that differ; all of them for a configuration without a model."""
        if config is None:
            return set(self.shapes)
        try:
            # As it is written and read again: sizes are checked, and some are derived from others.
            config.validate()
            model = self.build(type(config).from_dict(config.to_dict()))
        except Exception:  # Classes raise any error for sizes that they cannot have.
            return set(self.shapes)
        built = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        return {name for name in built.keys() | self.shapes.keys() if built.get(name) != self.shapes.get(name)}


def _dense_state(model: PreTrainedModel, blocks: Sequence[AttentionBlock]) -> dict[str, Tensor]:
    """Return the tensors of a model as a dense model has them.

    Attention of the kind of T5 keeps the position biases of all original heads and the numbers of its own: the dense
    table has the columns of those, where all layers that use one table have the same.
    """
    state: dict[str, Tensor] = dict(model.state_dict())
    prefix = base_prefix(model)
    stacks: dict[str, list[AttentionBlock]] = {}
    for block in blocks:
        has_bias = hasattr(block.module, "has_relative_attention_bias")
        if has_bias and f"{prefix}{block.name}.head_index" in state:
            stacks.setdefault(block.name.partition(".block.")[0], []).append(block)
    for members in stacks.values():
        shared: Sequence[int] | None = None
        for block in members:
            name, module = f"{prefix}{block.name}", cast(Any, block.module)
            if module.has_relative_attention_bias:
                shared, table = block.head_ids, f"{name}.relative_attention_bias.weight"
                state[table] = state[table].index_select(1, module.head_index)
            # Cross-attention adds zeros.
            if "EncDecAttention" in name or shared == block.head_ids:
                del state[f"{name}.head_index"]
    return state


def _changes(
    config: PreTrainedConfig, attention: Sequence[AttentionBlock], feed_forward: Sequence[FeedForwardBlock]
) -> Iterator[_Change]:
    """Yield changes of a configuration, nested ones included, that could give blocks their present sizes."""
    widths = {
        (block.width_before, block.num_neurons, block.hidden_size)
        for block in feed_forward
        if block.num_neurons != block.width_before
    }
    heads = {
        (block.num_heads_before, block.num_heads, block.num_key_value_heads, block.head_dim)
        for block in attention
        if 0 < block.num_heads < block.num_heads_before
    }
    for path, fields in _nested_fields(config):
        for width in sorted(widths):
            for name, value in fields.items():
                new = new_width(name, value, *width)
                if new is not None:
                    yield path, {name: new}
        for before, after, key_values, head_dim in sorted(heads):
            counts = {name: after for name, value in fields.items() if HEADS.search(name) and value == before}
            counts |= {name: key_values for name in fields if KEY_VALUE_HEADS.search(name) and fields[name]}
            if counts:
                yield path, counts
                # Classes read this field even where their configuration does not declare it.
                yield path, {**counts, "head_dim": head_dim}


def _nested_fields(config: PreTrainedConfig, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the path and the fields of a configuration and of those in it."""
    yield path, vars(config)
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield from _nested_fields(value, (*path, name))


def _apply(config: PreTrainedConfig, change: _Change) -> PreTrainedConfig | None:
    """Return a changed copy of a configuration, or None if its class refuses the values."""
    path, values = change
    changed = copy.deepcopy(config)
    part: Any = changed
    for name in path:
        part = getattr(part, name)
    try:
        for name, value in values.items():
            setattr(part, name, value)
    except (AttributeError, StrictDataclassError):  # Properties, and values of another type.
        return None
    return changed


def _refusal(model: PreTrainedModel, reason: str, remedy: str = "") -> StockError:
    problem = f"{type(model).__name__} cannot be saved as a stock model of transformers: {reason}."
    otherwise = f"{remedy}, or save" if remedy else "Save"
    return StockError(
        problem,
        python=f" {otherwise} it with stock=False, as a compact folder.",
        command=" It is saved as a compact folder, which loads with trust_remote_code=True.",
    )


def _check_without_padding(model: PreTrainedModel, blocks: Sequence[_Block]) -> None:
    for block in blocks:
        if block.slot_ids != block.unit_ids:
            raise _refusal(
                model,
                f"{block.name} has removed heads as padding, since its groups of query heads lost different numbers",
                "Remove equally many heads of every group",
            )


def _explain(model: PreTrainedModel, blocks: Sequence[_Block], differing: set[str]) -> StockError:
    """Return the error about a model that no configuration describes."""
    prefix, config = base_prefix(model), type(model.config).__name__
    block = next((one for one in blocks if any(name.startswith(f"{prefix}{one.name}.") for name in differing)), None)
    if block is None:
        return _refusal(model, f"{min(differing)} differs from the model that {config} describes")
    size = f"{_size(block)} of {_size_before(block)} {block.unit}"
    for other in blocks:
        if (other.kind, _size_before(other)) == (block.kind, _size_before(block)) and _size(other) != _size(block):
            reason = f"{block.name} keeps {size}, but {other.name} {_size(other)}"
            return _refusal(model, reason, "Remove equally many of every layer, as objectives with uniform=True do")
    if isinstance(block, AttentionBlock):
        return _refusal(model, _explain_heads(block, config, differing), "Remove neurons only")
    return _refusal(model, f"no setting of {config} gives {block.name} {size}")


def _explain_heads(block: AttentionBlock, config: str, differing: set[str]) -> str:
    if not block.num_heads:
        return f"{block.name} has no head, and {config} describes at least one"
    if any(name.endswith(f"{block.name}.head_index") for name in differing):
        if block.spec.shares_bias:
            return f"its layers share the position biases of {block.name}, but keep other heads than that"
        return f"{block.name} selects its position biases or slopes from those of all heads of the original model"
    if hasattr(block.module, "config") and getattr(block.module.config, "head_dim", None):
        return f"{config} has no valid sizes with {block.num_heads} heads of width {block.head_dim} in {block.name}"
    return (
        f"{config} cannot describe {block.num_heads} heads of width {block.head_dim} in {block.name}; it computes the "
        "width of a head from the hidden size and the number of heads"
    )


def _size(block: _Block) -> int:
    return unit_of(block).size(block)


def _size_before(block: _Block) -> int:
    return unit_of(block).size_before(block)


# Names of fields, in the configurations of transformers, with a number of neurons, with this number as a multiple of
# the hidden size, and with a number of heads.
_WIDTH = re.compile(r"(?i)intermediate|inner|ffn|ff\b|_ff|hidden_dim|mlp|feed_?forward")
_RATIO = re.compile(r"(?i)ratio|multiple|expan")
HEADS = re.compile(r"(?i)heads?$")
KEY_VALUE_HEADS = re.compile(r"(?i)(key_value|kv)_heads?$")


def new_width(name: str, value: object, before: int, after: int, hidden: int) -> object:
    """Return the value of a field that gives a block its present number of neurons, or None.

    Example:
        >>> new_width("intermediate_size", 64, 64, 48, 16), new_width("mlp_ratio", 4.0, 64, 48, 16)
        (48, 3.0)
    """
    if _WIDTH.search(name) and not isinstance(value, bool) and value in (before, None):
        return after
    if _WIDTH.search(name) and isinstance(value, list) and value and all(item == before for item in value):
        return [after] * len(value)
    if not (_RATIO.search(name) and type(value) in (int, float)):
        return None
    ratio = after / hidden
    # Classes round the product down.
    ratio = ratio if int(hidden * ratio) == after else math.nextafter(ratio, math.inf)
    return int(ratio) if isinstance(value, int) and ratio.is_integer() else ratio
