"""The place of gates in a model: a pre-hook of each output projection, and hooks of the model around each pass."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gating.gates.draw import Draw
from gating.structure.blocks import AttentionBlock

__all__ = ["CHILD_NAME", "Attachment"]

CHILD_NAME = "head_gates"


class _BlockGate(nn.Module):
    """The gates of one attention block, as a pre-hook of its output projection.

    A module, not a closure: ``print(model)`` shows it, and a copy of the model has its own.
    """

    def __init__(self, draw: Draw, block_index: int, *, num_heads: int, num_gates: int) -> None:
        super().__init__()
        self.draw = draw
        self.block_index = block_index
        self.num_heads = num_heads
        self.num_gates = num_gates

    def forward(self, projection: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Scale the outputs of the heads, ``[..., num_slots * head_dim]``, which the projection mixes."""
        head_outputs, *others = inputs
        scaling = self.draw.scaling(self.block_index, head_outputs.dtype)
        return (head_outputs * scaling, *others)

    def extra_repr(self) -> str:
        gates = "" if self.num_gates == self.num_heads else f", num_gates={self.num_gates}"
        return f"num_heads={self.num_heads}{gates}"


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
        self.gate_handles: list[RemovableHandle] = []
        self.other_handles: list[RemovableHandle] = []
        model.add_module(CHILD_NAME, gates)
        gates.train(model.training)

    def hook_passes(self, draw: Draw) -> None:
        """Make a draw before each forward pass of the model."""
        # The base model may be called alone. Not all models with a task head call it: some call a part of it only.
        base = getattr(self.model, "base_model", self.model)
        self.other_handles += [
            base.register_forward_pre_hook(draw.begin_base_pass),
            base.register_forward_hook(draw.end_pass, always_call=True),
        ]
        if base is not self.model:
            self.other_handles += [
                self.model.register_forward_pre_hook(draw.begin_pass),
                self.model.register_forward_hook(draw.end_pass, always_call=True),
            ]

    def hook_blocks(self, draw: Draw, blocks: Sequence[AttentionBlock], num_gates: Sequence[int]) -> None:
        """Scale the head outputs of each block by its gates."""
        for index, (block, size) in enumerate(zip(blocks, num_gates, strict=True)):
            gate = _BlockGate(draw, index, num_heads=block.num_heads, num_gates=size).train(self.model.training)
            projection = block.output_projection
            projection.add_module("gate", gate)
            self.projections.append(projection)
            self.gate_handles.append(projection.register_forward_pre_hook(gate))

    def remove(self) -> None:
        """Remove all submodules and hooks from the model, in place."""
        for handle in (*self.gate_handles, *self.other_handles):
            handle.remove()
        delattr(self.model, CHILD_NAME)
        for projection in self.projections:
            delattr(projection, "gate")
