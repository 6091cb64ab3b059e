"""The layouts of attention and feed-forward blocks: where their heads and neurons are in linear layers, of any class.

``nn.Linear`` keeps its weight as ``[outputs, inputs]``; GPT-2's ``Conv1D`` as ``[inputs, outputs]``.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gating.errors import InputError
from gating.loader.modeling import PARTS, freeze
from gating.loader.parts import original_class

RowLayout = Literal["q", "k", "v", "kv", "qkv", "hqkv", "gqkv", "hkv", "pqvk", "kkq", "gkkqq", "gqq"]
UpLayout = Literal["plain", "halves", "pairs"]
Side = Literal["inputs", "outputs"]


# In place of the name of an attribute with the width of a head, where a class has one for the number of heads alone.
BY_COUNT = "by_count"


@dataclass(frozen=True)
class AttentionSpec:
    """The layout of the heads of one attention class.

    A path is a dotted attribute name, relative to the attention module or, with a leading ``^``, to its parent. Paths
    to attributes that a module lacks are skipped, because configurations of one class differ.

    Attributes:
        projections: Pairs ``(path, layout)`` of the linear layers that compute queries, keys and values; a path to a
            parameter stands for an ``nn.MultiheadAttention``. The layout is the order of heads in their output rows:
            ``q``, ``k`` or ``v`` alone, ``kv`` and ``qkv`` one kind after another; ``hqkv`` and ``hkv`` one query head
            after another, ``gqkv`` one key-value group; ``pqvk`` one part after another, as many as ``mp_num`` says.
            With ``q``, ``k``, ``v`` and ``hkv``, a head may have more rows than columns in the output projection, such
            as those of an output gate. With ``has_state``, ``q`` stands for what each head has for itself and ``k`` for
            what a group shares, in ``kkq`` one kind after another, in ``gkkqq`` and ``gqq`` one group.
        output_projection: Path of the linear layer that mixes the heads; its input is ``[..., num_heads * head_dim]``.
        head_dim: Name of the attribute with the width of one head in the input of the output projection, or that width;
            with ``by_count``, it is that of the input over the number of heads.
        returns: Return value: ``pair`` for ``(output, attention probabilities)``, ``context`` for the same with the
            output projection outside, ``tensor`` for the output alone, ``other`` for anything else: a block without any
            kept head then has one whose columns of the output projection are zero.
        head_counts: Paths of attributes with the number of heads; those of the parent only while there are heads.
        head_widths: Attributes with ``num_heads * head_dim``.
        is_cross_attention: Whether keys and values come from another sequence; names such as ``encoder_attn`` tell it,
            and those of classes with ``Cross``.
        per_head: Pairs ``(path, dim)`` of parameters with entries for each head along ``dim``, or of lists of modules.
        per_key_value_head: The same for each key-value head.
        per_head_inputs: Pairs ``(argument, dim)`` of arguments of ``forward`` with an entry for each head of the
            original model, such as shared position biases. Dimension 0 may also be that of batch and heads together.
        shares_bias: Whether the first layer computes a position bias for the heads of all layers, as in T5.
        config_counts: Names of the head counts that ``forward`` reads from the module's ``config``.
        forward: Replacement of a ``forward`` that fails with fewer heads.
        key_dim: Name of the attribute with the width of one query and one key, where it is not the one of ``head_dim``.
        key_widths: Attributes with ``num_key_value_heads * key_dim``.
        has_state: Whether heads keep a state of one size in place of keys and values, as in linear attention.
        calls_projection: Whether the class's own ``forward`` calls the output projection as a module. Otherwise,
            ``forward`` also replaces it while functions are called on the outputs of heads.
        borrowed: Those of ``k`` and ``v`` without a projection: ``kv`` of a layer that uses those of an earlier one,
            ``v`` where the keys are the values, too.
        lends: Whether later layers use the keys and values of this one, so that all key-value heads stay.
        other_outputs: Paths of further output projections of the same heads, at most as wide, for a second sequence.

    Example:
        >>> AttentionSpec((("q", "q"), ("k", "k"), ("v", "v")), "out").returns
        'pair'
    """

    projections: tuple[tuple[str, RowLayout], ...]
    output_projection: str
    head_dim: str | int = "head_dim"
    returns: str = "pair"
    head_counts: tuple[str, ...] = ("num_heads", "num_attention_heads", "n_heads")
    head_widths: tuple[str, ...] = ("all_head_size",)
    is_cross_attention: bool = False
    per_head: tuple[tuple[str, int], ...] = ()
    per_key_value_head: tuple[tuple[str, int], ...] = ()
    per_head_inputs: tuple[tuple[str, int], ...] = ()
    shares_bias: bool = False
    config_counts: tuple[str, ...] = ()
    forward: Callable[..., Any] | None = None
    key_dim: str = ""
    key_widths: tuple[str, ...] = ()
    has_state: bool = False
    calls_projection: bool = True
    borrowed: Literal["", "v", "kv"] = ""
    lends: bool = False
    other_outputs: tuple[str, ...] = ()

    @property
    def keeps_key_value_heads(self) -> bool:
        """Whether all key-value heads stay, because other layers use them, too."""
        return self.lends or "k" in self.borrowed


@dataclass(frozen=True)
class FeedForwardSpec:
    """The layout of the feed-forward block in one class of modules.

    Attributes:
        ups: Pairs ``(path, layout)`` of the linear layers that compute the intermediate features. The layout is the
            order of their output rows: ``plain`` for one row a neuron; ``halves`` for all rows of the gate, then all
            others; ``pairs`` for the two rows of one neuron after another.
        down: Path of the linear layer back to the hidden size; its input is ``[..., num_neurons]``.

    Example:
        >>> FeedForwardSpec((("gate_proj", "plain"), ("up_proj", "plain")), "down_proj").down
        'down_proj'
    """

    ups: tuple[tuple[str, UpLayout], ...]
    down: str

    def num_neurons(self, module: nn.Module) -> int:
        """Return the number of neurons in a module."""
        return num_inputs(module.get_submodule(self.down))


@dataclass(frozen=True)
class ExpertsSpec(FeedForwardSpec):
    """The layout of the parameters of experts; the paths are names of parameters ``[num_experts, outputs, inputs]``.

    A router chooses some experts for each token. All experts of a layer have the same neurons, which they lose
    together: experts of different widths would not fit into one parameter.

    Attributes:
        is_transposed: Whether the parameters are ``[num_experts, inputs, outputs]``.
    """

    is_transposed: bool = False

    @property
    def input_dim(self) -> int:
        """The dimension of a parameter that belongs to the inputs of its experts."""
        return 1 if self.is_transposed else 2

    @property
    def output_dim(self) -> int:
        """The dimension of a parameter that belongs to the outputs of its experts."""
        return 3 - self.input_dim

    def num_neurons(self, module: nn.Module) -> int:
        """Return the number of neurons of each expert in a module."""
        return int(getattr(module, self.down).shape[self.input_dim])

    def dims(self, module: nn.Module) -> Iterator[tuple[str, UpLayout, int]]:
        """Yield the parameters with rows of neurons: their names, layouts and dimensions of the neurons.

        These are the weights of the up projections, and their biases ``[num_experts, outputs]`` where there are any.
        """
        yield from ((name, layout, self.output_dim) for name, layout in self.ups)
        for name, layout in self.ups:
            if module._parameters.get(f"{name}_bias") is not None:
                yield f"{name}_bias", layout, 1


def read_spec(values: Any, spec_class: Any) -> Any:
    """Return a layout from the plain values in the record of a folder; raise ``InputError`` if they are none."""
    known = {key: freeze(value) for key, value in values.items()}
    for text in _texts([value for name, value in known.items() if name != "returns"]):
        if not re.fullmatch(r"\^?([A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*_?|\d+)(\.(\w*[A-Za-z0-9]|\d+))*", text):
            raise InputError(f"The layout of a block in the record has {text!r}, which is no path.")
    try:
        if "forward" in known:
            known["forward"] = PARTS[known["forward"]]
        return spec_class(**known)
    except (KeyError, TypeError) as error:
        raise InputError(f"The layout of a block in the record cannot be read: {error}.") from None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in value if isinstance(value, (list, tuple)) else ():
        yield from _texts(item)


# Of a class whose layout depends on the configuration, a function returns the spec of a module; None for a module of
# another class of the same name.
Row = AttentionSpec | Callable[[nn.Module], AttentionSpec | None]
Projections = tuple[tuple[str, RowLayout], ...]

Q_K_V: Projections = (("q", "q"), ("k", "k"), ("v", "v"))
Q_K_V_PROJ: Projections = (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"))
QUERY_KEY_VALUE: Projections = (("query", "q"), ("key", "k"), ("value", "v"))


# The output projection is in a sibling module, as in BERT.
CONTEXT = AttentionSpec(QUERY_KEY_VALUE, "^output.dense", head_dim="attention_head_size", returns="context")


def has_variable(module: nn.Module, name: str) -> bool:
    """Return whether the ``forward`` of a module's class has an argument or variable, by which versions differ."""
    forward: Any = inspect.unwrap(original_class(type(module)).forward)
    return name in forward.__code__.co_varnames


def size_names(linear: nn.Module, side: Side) -> list[str]:
    """Return the attributes of a layer with the number of its inputs or outputs, beside its weight."""
    names = ("nx", "nf") if isinstance(linear, Conv1D) else ("in_features", "out_features")
    # The outputs of a convolution of each channel for itself are the inputs.
    is_convolution = isinstance(linear, nn.Conv1d)
    changed = ("in_channels", "out_channels", "groups") if is_convolution else (names[side == "outputs"],)
    return [name for name in changed if hasattr(linear, name)]


def parameter_names(linear: nn.Module) -> tuple[str, str]:
    """Return the names of a layer's weight and bias; ``nn.MultiheadAttention`` projects its inputs itself."""
    return ("in_proj_weight", "in_proj_bias") if isinstance(linear, nn.MultiheadAttention) else ("weight", "bias")


def weight_dim(linear: nn.Module, side: Side) -> int:
    """Return the dimension of a layer's weight that belongs to its inputs or outputs."""
    return int((side == "inputs") != isinstance(linear, Conv1D))


def num_inputs(linear: nn.Module) -> int:
    """Return the width of a linear layer's input, read from its weight."""
    return _width(without_adapter(linear), "inputs")


def num_outputs(linear: nn.Module) -> int:
    """Return the width of a linear layer's output, read from its weight."""
    return _width(without_adapter(linear), "outputs")


def without_adapter(linear: nn.Module) -> nn.Module:
    """Return the layer that an adapter, such as LoRA's, wraps; a layer without adapter as it is."""
    inner = getattr(linear, "base_layer", None)
    return without_adapter(inner) if isinstance(inner, nn.Module) else linear


def _width(linear: Any, side: Side) -> int:
    weight = getattr(linear, parameter_names(linear)[0], None)
    if isinstance(weight, Tensor) and (weight.is_floating_point() or not hasattr(linear, "in_features")):
        return int(weight.shape[weight_dim(linear, side)])
    # A quantized layer, whose weight may be packed: the error that it cannot be edited comes later.
    return int(linear.in_features if side == "inputs" else linear.out_features)
