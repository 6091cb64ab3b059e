"""Sizes of decoders layer by layer, for runtimes that read them from files, and the models that have none."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from gating.errors import InputError
from gating.structure.attention import iter_attention_blocks
from gating.structure.feed_forward import iter_feed_forward_blocks

__all__ = ["DecoderSizes", "sizes_of"]


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
