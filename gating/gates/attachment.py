"""The place of gates in a model: a pre-hook of each output projection, and hooks of the model around each pass."""

from collections.abc import Sequence

from torch import nn

from gating.errors import InputError
from gating.gates.pass_values import BlockGate, PassValues
from gating.gates.weight_gate import WeightGate, can_gate_weight
from gating.structure.blocks import Block
from gating.structure.hooks import Handle
from gating.units import unit_of

__all__ = ["CHILD_NAME", "Attachment", "check_not_gated"]

CHILD_NAME = "head_gates"


class Attachment:
    """The submodules and hooks that gates have in one model.

    Attributes:
        model: The model, which has the gates as its submodule ``head_gates``.
        projections: The output projection of each gated block, which has its gates as a submodule ``gate``.
        gate_handles: Handles of the hooks that scale the inputs of the projections.
        other_handles: Handles of all other hooks to remove with the gates.
    """

    def __init__(self, model: nn.Module, gates: nn.Module) -> None:
        """Make gates a submodule of a model, in place."""
        self.model = model
        self.projections: list[nn.Module] = []
        self.gate_handles: list[Handle] = []
        self.other_handles: list[Handle] = []
        model.add_module(CHILD_NAME, gates)
        gates.train(model.training)

    def hook_passes(self, values: PassValues) -> None:
        """Make the gate values before each forward pass of the model."""
        # The base model may be called alone. Not all models with a task head call it: some call a part of it only.
        base = getattr(self.model, "base_model", self.model)
        self.other_handles += [
            base.register_forward_pre_hook(values.begin_base_pass),
            base.register_forward_hook(values.end_pass, always_call=True),
        ]
        if base is not self.model:
            self.other_handles += [
                self.model.register_forward_pre_hook(values.begin_pass),
                self.model.register_forward_hook(values.end_pass, always_call=True),
            ]

    def hook_blocks(self, values: PassValues, blocks: Sequence[Block], num_gates: Sequence[int]) -> None:
        """Scale the features of each block by its gates, or the weight that they meet where that is cheaper."""
        for index, (block, size) in enumerate(zip(blocks, num_gates, strict=True)):
            unit, projection = unit_of(block), block.output_projection
            gate = BlockGate(values, index, shown=unit.describe_gates(block, size)).train(self.model.training)
            projection.add_module("gate", gate)
            self.projections.append(projection)
            by_weight = unit.gates_weight and can_gate_weight(projection)
            self.gate_handles.append(WeightGate(projection) if by_weight else block.hook_features(gate))

    def remove(self) -> None:
        """Remove all submodules and hooks from the model, in place."""
        for handle in (*self.gate_handles, *self.other_handles):
            handle.remove()
        delattr(self.model, CHILD_NAME)
        for projection in self.projections:
            delattr(projection, "gate")


def check_not_gated(blocks: Sequence[Block]) -> None:
    """Raise ``InputError`` for a block that has gates, as those of a part of the model or of a model around it."""
    for block in blocks:
        if isinstance(block.output_projection._modules.get("gate"), BlockGate):
            raise InputError(
                f"{block.name} has gates of another model with the same layers: call head_gates.remove() of it first."
            )
