"""Sizes of decoders layer by layer, for runtimes that read them from files, and where vLLM looks for them."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import transformers
from transformers import PreTrainedModel

from gating.errors import InputError
from gating.loader.modeling import CONFIG
from gating.structure.attention import iter_attention_blocks
from gating.structure.feed_forward import ExpertsBlock, iter_feed_forward_blocks


@dataclass(frozen=True)
class DecoderSizes:
    """The sizes of a decoder, with one entry for each layer.

    Attributes:
        head_dim: Width of a head, of its queries, keys and values.
        names: Names of the attention blocks.
        num_heads: Query heads in the projections, with those that only fill groups; 0 in an emptied block.
        num_key_value_heads: Key-value heads; 0 in an emptied block.
        num_neurons: Feed-forward neurons.
    """

    head_dim: int
    names: tuple[str, ...]
    num_heads: tuple[int, ...]
    num_key_value_heads: tuple[int, ...]
    num_neurons: tuple[int, ...]

    @property
    def is_even(self) -> bool:
        """Whether all layers have the same sizes, and heads and neurons at all."""
        columns = (self.num_heads, self.num_key_value_heads, self.num_neurons)
        return all(len(set(column)) == 1 and column[0] > 0 for column in columns)

    @property
    def emptied(self) -> tuple[str, ...]:
        """Names of the blocks without a head."""
        return tuple(name for name, count in zip(self.names, self.num_heads, strict=True) if not count)


def sizes_of(model: PreTrainedModel) -> DecoderSizes:
    """Return the sizes of a decoder of text.

    Args:
        model: A model of transformers whose layers have one block of self-attention and one of neurons each.

    Raises:
        ValueError: The model is another one.
    """
    name, config = type(model).__name__, model.config
    if config.is_encoder_decoder or not (model.can_generate() and model.main_input_name == "input_ids"):
        raise InputError(f"{name} is not a decoder that writes text.")
    if config.get_text_config() is not config:
        raise InputError(f"{name} reads more than text.")
    attention = sorted(iter_attention_blocks(model), key=lambda block: block.layer_idx)
    feed_forward = sorted(iter_feed_forward_blocks(model), key=lambda block: block.layer_idx)
    layers = list(range(config.num_hidden_layers))
    for kind, found in (("self-attention", attention), ("neurons", feed_forward)):
        if [block.layer_idx for block in found] != layers:
            raise InputError(
                f"{name} has {len(found)} known blocks of {kind} in {len(layers)} layers, so its sizes cannot be told "
                "to the runtime."
            )
    if len({(block.head_dim, block.key_dim) for block in attention}) > 1 or attention[0].spec.has_state:
        raise InputError(f"{name} has heads of different widths or kinds.")
    return DecoderSizes(
        head_dim=attention[0].head_dim,
        names=tuple(block.name for block in attention),
        num_heads=tuple(len(block.head_slots) for block in attention),
        num_key_value_heads=tuple(block.num_key_value_heads for block in attention),
        num_neurons=tuple(block.num_neurons for block in feed_forward),
    )


def write_layer_counts(model: PreTrainedModel, folder: Path) -> None:
    """Write the head counts of each layer into the configuration of a compact folder."""
    path = folder / CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"allow_global_per_layer_attribute_access": True, "per_layer_config": _counts(model)}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_layers(model: PreTrainedModel) -> None:
    """Raise ``ValueError`` unless vLLM's backend for models of transformers can run the layers of a compact model."""
    if reason := next(_reasons_against(model), None):
        raise InputError(f"{type(model).__name__} does not run in vLLM with other heads in each layer: {reason}.")


def _reasons_against(model: PreTrainedModel) -> Iterator[str]:
    if not getattr(model, "_supports_attention_backend", False):
        yield "its class does not let a runtime compute the attention (_supports_attention_backend)"
    if getattr(model.config, "is_heterogeneous", False):
        yield "its configuration has a per_layer_config of its own"
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    for name in model.state_dict():
        if any(re.search(pattern, name) for pattern in ignored):
            yield f"vLLM leaves out {name}, as its class ignores such names in checkpoints"
    for block in iter_attention_blocks(model):
        if block.spec.keeps_key_value_heads:
            yield f"{block.name} shares keys and values with other layers"
        if any(layout == "hkv" for _, layout in block.projections()):
            yield f"{block.name} caches a latent, for which vLLM has one size for all layers"
    for feed_forward in iter_feed_forward_blocks(model):
        if isinstance(feed_forward, ExpertsBlock) and feed_forward.num_neurons != feed_forward.width_before:
            yield f"{feed_forward.name} has experts with fewer neurons than the configuration"
    if not hasattr(model.config, "is_heterogeneous"):
        yield f"transformers {transformers.__version__} reads no per_layer_config (pip install -U transformers)"


def _counts(model: PreTrainedModel) -> dict[str, dict[str, int]]:
    """Return ``per_layer_config``: the sizes of each layer, by the names that the configuration has for them."""
    sizes, config = sizes_of(model), model.config
    digits = len(str(len(sizes.names) - 1))
    layers = {}
    for layer, (heads, groups) in enumerate(zip(sizes.num_heads, sizes.num_key_value_heads, strict=True)):
        known = {"num_attention_heads": heads, "num_key_value_heads": groups, "num_kv_heads": groups}
        counts = {name: count for name, count in known.items() if hasattr(config, name)}
        if getattr(config, "head_dim", None) is None:
            # It would be computed from the number of heads of the layer.
            counts["head_dim"] = sizes.head_dim
        layers[str(layer).zfill(digits)] = counts
    return layers
