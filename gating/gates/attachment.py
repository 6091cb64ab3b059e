"""The place of gates in a model: a pre-hook of each output projection, and hooks of the model around each pass."""

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from gating.errors import InputError
from gating.gates.pass_values import PassValues
from gating.loader.modeling import subclass
from gating.loader.parts import original_class
from gating.structure.blocks import Block
from gating.structure.hooks import Handle

CHILD_NAME = "head_gates"


class Attachment:
    """The parts of gates in one model: ``head_gates``, the ``gate`` of each output projection, and hooks."""

    def __init__(self, model: nn.Module, gates: nn.Module, values: PassValues, blocks: Sequence[Block]) -> None:
        """Make gates a submodule of a model, in place, with hooks on the model and on each output projection."""
        self.model = model
        self.projections: list[nn.Module] = []
        self.handles: list[Handle] = []
        model.add_module(CHILD_NAME, gates)
        gates.train(model.training)
        self._hook_passes(values)
        self._hook_blocks(values, blocks)

    def _hook_passes(self, values: PassValues) -> None:
        """Make the gate values before each forward pass of the model."""
        # The base model may be called alone. Not all models with a task head call it: some call a part of it only.
        base = getattr(self.model, "base_model", self.model)
        begins = {base: values.begin_base_pass}
        if base is not self.model:
            begins[self.model] = values.begin_pass
        for module, begin in begins.items():
            self.handles.append(module.register_forward_pre_hook(begin))
            self.handles.append(module.register_forward_hook(values.end_pass, always_call=True))

    def _hook_blocks(self, values: PassValues, blocks: Sequence[Block]) -> None:
        """Scale the features of each block by its gates, or the weight that they meet where that is cheaper."""
        for index, block in enumerate(blocks):
            projection = block.output_projection
            gate = BlockGate(values, index).train(self.model.training)
            projection.add_module("gate", gate)
            self.projections.append(projection)
            by_weight = block.gates_weight and _can_gate_weight(projection)
            self.handles.append(WeightGate(projection) if by_weight else block.hook_features(gate))

    def remove(self) -> None:
        """Remove all submodules and hooks from the model, in place."""
        for handle in self.handles:
            handle.remove()
        delattr(self.model, CHILD_NAME)
        for projection in self.projections:
            delattr(projection, "gate")


class BlockGate(nn.Module):
    """The gates of one block, as a function of its features.

    A module, not a closure: ``print(model)`` shows it, and a copy of the model has its own.
    """

    def __init__(self, pass_values: PassValues, block_index: int) -> None:
        """Take the values of all gates, and the position of the block among theirs."""
        super().__init__()
        self.pass_values = pass_values
        self.block_index = block_index

    def forward(self, features: Tensor) -> Tensor:
        """Scale features of heads or neurons, or the columns of a weight that they meet: ``[..., num_features]``."""
        return features * self.pass_values.scaling(self.block_index, features)


class WeightGate:
    """The subclass of a layer that scales its weight by the gates of its submodule ``gate``, as a removable handle.

    Gates on the columns of a weight are cheaper than gates on the features that it multiplies. A down projection has
    four times as many inputs as outputs, so that scaling its input takes some 5 percent of a feed-forward block's time,
    and as much memory as the input. With ``W`` of shape ``[outputs, inputs]``, ``(x * scale) W^T = x (W * scale)^T``,
    and a batch has more tokens than the layer has outputs.
    """

    def __init__(self, projection: nn.Module) -> None:
        """Change the class of a layer, in place."""
        self._projection = projection
        projection.__class__ = subclass(type(projection), (_scaled,))

    def remove(self) -> None:
        """Change the class of the layer back, in place."""
        self._projection.__class__ = original_class(type(self._projection))


def _scaled(base: Any) -> dict[str, Any]:
    """Return the members of a subclass of ``nn.Linear`` or ``Conv1D`` that multiplies its inputs by gates."""
    is_transposed = issubclass(base, Conv1D)

    def forward(self: Any, features: Tensor) -> Tensor:
        if features.numel() <= self.weight.numel():
            output: Tensor = base.forward(self, self.gate(features))
            return output
        weight = self.weight.t() if is_transposed else self.weight
        return functional.linear(features, self.gate(weight), self.bias)

    return {"forward": forward}


def _can_gate_weight(projection: nn.Module) -> bool:
    """Return whether to scale the weight of a layer, not its input."""
    # Adapters see the features, too. For a frozen weight, only that of the scale would need its gradient.
    weight = projection._parameters.get("weight")
    return type(projection) in (nn.Linear, Conv1D) and weight is not None and weight.requires_grad


def check_not_gated(blocks: Sequence[Block]) -> None:
    """Raise ``InputError`` for a block that has gates, as those of a part of the model or of a model around it."""
    for block in blocks:
        if isinstance(block.output_projection._modules.get("gate"), BlockGate):
            raise InputError(
                f"{block.name} has gates of another model with the same layers: call head_gates.remove() of it first."
            )


def freeze(model: nn.Module) -> frozenset[str]:
    """Freeze the weights of a model but those of gates, in place, and return the names for :func:`unfreeze`."""
    parameters = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and CHILD_NAME not in name.split(".")
    }
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    return frozenset(parameters)


def unfreeze(model: nn.Module, names: Collection[str]) -> None:
    """Make the parameters of these names trainable, in place; those that are gone with their units are left out."""
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(True)
