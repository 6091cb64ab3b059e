"""A removal that is repeated: the units of a compact model as plain values, and the dense model without the others."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from gating.errors import InputError
from gating.pruning.plan import plan_pruning
from gating.pruning.recording import become_compact
from gating.structure.attention import iter_attention_blocks
from gating.structure.edits import apply_edits
from gating.structure.feed_forward import iter_feed_forward_blocks

__all__ = ["KeptUnits"]


@dataclass(frozen=True)
class KeptUnits:
    """Heads and neurons of a compact model, from which an interrupted training makes it again.

    Attributes:
        heads: Original numbers of the kept heads of each attention block.
        neurons: Group size and original numbers of the kept groups of neurons of each feed-forward block.
    """

    heads: dict[str, list[int]]
    neurons: dict[str, tuple[int, list[int]]]

    @classmethod
    def of(cls, model: PreTrainedModel) -> "KeptUnits":
        """Return the heads and neurons of a model."""
        return cls(
            heads={block.name: list(block.head_ids) for block in iter_attention_blocks(model)},
            neurons={
                block.name: (block.group_size, list(block.group_ids)) for block in iter_feed_forward_blocks(model)
            },
        )

    def remove_others(self, model: PreTrainedModel) -> None:
        """Remove the heads and neurons of a dense model that the compact one no longer has, in place.

        The weights that stay are not those of the compact model, which the caller loads.

        Args:
            model: The model, without gates and adapters; it may be on the meta device.

        Raises:
            InputError: The model has other blocks than the compact one; nothing is changed.
        """
        attention = list(iter_attention_blocks(model))
        feed_forward = [
            block.regrouped(self.neurons[block.name][0])
            for block in iter_feed_forward_blocks(model)
            if block.name in self.neurons
        ]
        is_same = {block.name for block in attention} == set(self.heads) and len(feed_forward) == len(self.neurons)
        if not is_same or any(set(self.heads[block.name]) - set(block.head_ids) for block in attention):
            raise InputError(
                f"The checkpoint is of another model than this {type(model).__name__}: they have other heads, "
                "attention or feed-forward blocks. Resume with the model that the training began with."
            )
        groups = {name: group_ids for name, (_, group_ids) in self.neurons.items()}
        apply_edits(plan_pruning(model, [*attention, *feed_forward], {**self.heads, **groups}))
        become_compact(model)
