"""Stock models: a dense architecture of transformers with smaller sizes that a compact model fits exactly.

Where every layer keeps equally many units, the configuration alone describes the model, and no record is needed. Fields
of the configuration are found by their values, and accepted only if the dense class, built without memory from the
changed configuration, has every tensor of the model in its shape.

A stock folder has a record beside its files, ``head_gating.json``, which nothing needs to load the model: the
configuration of the compact model with the record of kept units, as ``config.json`` of a compact folder has it.
"""

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel, initialization

from gating.compact.files import read_record
from gating.compact.limits import bounded_building
from gating.errors import InputError, loading
from gating.loader.modeling import CHECKSUMS, RECORD_KEY
from gating.loader.record import dense_class, dense_config
from gating.loader.record_checks import check_record
from gating.proof.input_sizes import nested_configs
from gating.pruning.layers import Settings, build_original, build_recorded, changed, reread
from gating.storage.hub import RECORD_FILE
from gating.structure.attention import AttentionBlock, iter_attention_blocks
from gating.structure.feed_forward import FeedForwardBlock, iter_feed_forward_blocks
from gating.structure.layers import iter_blocks

# Names of fields, in the configurations of transformers, with a number of neurons, with this number as a multiple of
# the hidden size, and with a number of heads.
_WIDTH = re.compile(r"(?i)intermediate|inner|ffn|ff\b|_ff|hidden_dim|mlp|feed_?forward")
_RATIO = re.compile(r"(?i)ratio|multiple|expan")
_HEADS = re.compile(r"(?i)heads?$")
_KEY_VALUE_HEADS = re.compile(r"(?i)(key_value|kv)_heads?$")
# Configurations of transformers 5.0 take fractions and numbers of heads that those of later versions refuse.
_HAS_CHECKS = hasattr(PreTrainedConfig, "validate")


class StockError(InputError):
    """A compact model that no configuration of its dense architecture describes."""


def read_original(model: PreTrainedModel, folder: Path | None = None) -> PreTrainedConfig | None:
    """Return the configuration of the original of a model, with the record of kept units; None if it has lost none.

    The record of a model from a stock folder is looked for in the folder that it was loaded from.
    """
    if hasattr(model.config, RECORD_KEY):
        return model.config
    described = read_record(folder) if folder is not None else {}
    # Other folders have the checksums only.
    if folder is None or not described.keys() - {CHECKSUMS}:
        return None
    path = folder / RECORD_FILE
    described.pop(CHECKSUMS, None)
    with loading(str(path), remedy="Remove the file, which is not needed to load the model."):
        check_record(described.get(RECORD_KEY))
        config: PreTrainedConfig = type(model.config).from_dict(described)
        for build in (build_original, build_recorded):
            with bounded_building(path, [tensor.numel() for tensor in model.state_dict().values()]):
                build(model, config)
    return config


def may_be_stock(model: PreTrainedModel) -> bool:
    """Return whether blocks of one stack and kind have equally many units; others fit no configuration."""
    sizes: dict[tuple[str, str, int], set[int]] = {}
    for block in iter_blocks(model):
        # A configuration has fields for the encoder and for the decoder.
        stack = re.split(r"(^|\.)\d+(\.|$)", block.name)[0]
        sizes.setdefault((stack, block.kind, block.size_before), set()).add(block.size)
    return all(len(found) == 1 for found in sizes.values())


def stock_model(model: PreTrainedModel) -> PreTrainedModel:
    """Return a dense model with the weights of a compact one, for a folder that plain transformers loads.

    The result shares memory with the model, and its buffers that are not saved have no values: it is only to be saved.
    :class:`StockError` has the reason for which no configuration describes the model.
    """
    cls = dense_class(model)
    if getattr(transformers, cls.__name__, None) is not cls:
        raise _refusal(model, f"{cls.__name__} is not a class of transformers")
    if not may_be_stock(model):
        raise _refusal(model, "its layers keep different numbers of heads or neurons (uniform=True keeps equal ones)")
    attention, feed_forward = list(iter_attention_blocks(model)), list(iter_feed_forward_blocks(model))
    state, config = model.state_dict(), dense_config(model.config)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    # Fields are changed one after another as long as fewer tensors differ; fields of different layers affect different
    # tensors, so that no combination has to be tried.
    differing, before, changes = (
        _differing(cls, config, shapes, {}),
        None,
        list(_changes(config, attention, feed_forward)),
    )
    while differing and differing != before:
        before = differing
        for change in changes:
            if len(found := _differing(cls, config, shapes, change)) < len(differing):
                config, differing = changed(config, change), found
    if differing:
        name = min(differing)
        raise _refusal(model, f"no sizes in {type(config).__name__} give {name} the shape {list(shapes.get(name, ()))}")
    stock = _build(cls, config)
    stock.load_state_dict(state, assign=True)
    stock.tie_weights()
    if getattr(model, "generation_config", None) is not None:
        stock.generation_config = copy.deepcopy(model.generation_config)
    return stock


def _refusal(model: PreTrainedModel, reason: str) -> StockError:
    return StockError(
        f"{type(model).__name__} cannot be saved as a stock model of transformers: {reason}. A compact folder "
        "(stock=False) loads with trust_remote_code=True."
    )


def _build(cls: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Build a dense model without memory."""
    with torch.device("meta"), initialization.no_init_weights():
        return cls(copy.deepcopy(config))


def _differing(
    cls: type[PreTrainedModel], config: PreTrainedConfig, shapes: Mapping[str, tuple[int, ...]], change: Settings
) -> set[str]:
    """Return the names of the tensors that differ after a change; all of them for a configuration without a model."""
    try:
        config = changed(config, change)
        model = _build(cls, reread(config))
    except Exception:  # Classes raise any error for sizes that they cannot have.
        return set(shapes)
    built = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return {name for name in built.keys() | shapes.keys() if built.get(name) != shapes.get(name)}


def _changes(
    config: PreTrainedConfig, attention: Sequence[AttentionBlock], feed_forward: Sequence[FeedForwardBlock]
) -> Iterator[Settings]:
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
    for path, part in nested_configs(config):
        fields = vars(part)
        for width in sorted(widths):
            for name, value in fields.items():
                new = _new_width(name, value, *width)
                if new is not None:
                    yield {f"{path}{name}": new}
        for before, after, key_values, head_dim in sorted(heads):
            counts = {
                f"{path}{name}": after for name, value in fields.items() if _HEADS.search(name) and value == before
            }
            counts |= {f"{path}{name}": key_values for name in fields if _KEY_VALUE_HEADS.search(name) and fields[name]}
            if counts and (_HAS_CHECKS or getattr(part, "hidden_size", 0) % after == 0):
                yield counts
                # Classes read this field even where their configuration does not declare it.
                yield {**counts, f"{path}head_dim": head_dim}


def _new_width(name: str, value: object, before: int, after: int, hidden: int) -> object:
    """Return the value of a field that gives a block its present number of neurons, or None."""
    if _WIDTH.search(name) and not isinstance(value, bool) and value in (before, None):
        return after
    if _WIDTH.search(name) and isinstance(value, list) and value and all(item == before for item in value):
        return [after] * len(value)
    if not (_RATIO.search(name) and type(value) in (int, float)):
        return None
    ratio = after / hidden
    if isinstance(value, int) and not (ratio.is_integer() or _HAS_CHECKS):
        return None
    # Classes round the product down.
    ratio = ratio if int(hidden * ratio) == after else math.nextafter(ratio, math.inf)
    return int(ratio) if isinstance(value, int) and ratio.is_integer() else ratio
