"""A removal that is repeated: the units of a compact model as plain values, and the dense model without the others."""

from dataclasses import dataclass, field

from transformers import PreTrainedModel

from gating.errors import InputError
from gating.loader.saving import become_compact
from gating.pruning.layers import drop_layers
from gating.pruning.plan import plan_pruning
from gating.structure.attention import iter_attention_blocks
from gating.structure.edits import apply_edits, undo_edits
from gating.structure.feed_forward import iter_feed_forward_blocks
from gating.structure.layers import LayerList, dense_name, find_layer_lists, layers_record

__all__ = ["KeptUnits"]


@dataclass(frozen=True)
class KeptUnits:
    """Heads and neurons of a compact model, from which an interrupted training makes it again.

    Attributes:
        heads: Original numbers of the kept heads of each attention block.
        neurons: Group size and original numbers of the kept groups of neurons of each feed-forward block.
        layers: Original numbers of the layers of each list that layers have left. Names are those of the dense model.
    """

    heads: dict[str, list[int]]
    neurons: dict[str, tuple[int, list[int]]]
    layers: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: PreTrainedModel) -> "KeptUnits":
        """Return the heads and neurons of a model."""
        record = layers_record(model)
        return cls(
            heads={dense_name(record, block.name): list(block.head_ids) for block in iter_attention_blocks(model)},
            neurons={
                dense_name(record, block.name): (block.group_size, list(block.group_ids))
                for block in iter_feed_forward_blocks(model)
            },
            layers={name: list(numbers) for name, numbers in record.get("kept", {}).items()},
        )

    def remove_others(self, model: PreTrainedModel) -> None:
        """Remove the heads and neurons of a dense model that the compact one no longer has, in place.

        The weights that stay are not those of the compact model, which the caller loads.

        Args:
            model: The model, without gates and adapters; it may be on the meta device.

        Raises:
            InputError: The model has other blocks than the compact one; nothing is changed.
        """
        record = layers_record(model)
        gone: set[str] = set()
        lists: list[tuple[LayerList, list[int]]] = []
        for layers in find_layer_lists(model):
            numbers = list(record.get("kept", {}).get(layers.name, range(len(layers.layers))))
            stay = [numbers.index(number) for number in self.layers.get(layers.name, numbers) if number in numbers]
            lists += [(layers, stay)] if len(stay) < len(numbers) else []
            gone |= {block.name for n, blocks in enumerate(layers.blocks) if n not in stay for block in blocks}
        attention = [block for block in iter_attention_blocks(model) if block.name not in gone]
        others = [block for block in iter_feed_forward_blocks(model) if block.name not in gone]
        # The model that a training begins with may have lost layers before.
        names = {block.name: dense_name(record, block.name) for block in (*attention, *others)}
        heads = {block.name: self.heads.get(names[block.name], []) for block in attention}
        neurons = {block.name: self.neurons[names[block.name]] for block in others if names[block.name] in self.neurons}
        feed_forward = [block.regrouped(neurons[block.name][0]) for block in others if block.name in neurons]
        is_same = {names[block.name] for block in attention} == set(self.heads) and len(neurons) == len(self.neurons)
        if not is_same or any(set(heads[block.name]) - set(block.head_ids) for block in attention):
            raise InputError(
                f"The checkpoint is of another model than this {type(model).__name__}: they have other heads, "
                "attention or feed-forward blocks. Resume with the model that the training began with."
            )
        groups = {name: group_ids for name, (_, group_ids) in neurons.items()}
        done = apply_edits(plan_pruning(model, [*attention, *feed_forward], {**heads, **groups}))
        try:
            for layers, stay in lists:
                done += drop_layers(model, layers, stay)
        except BaseException:
            undo_edits(done)
            raise
        become_compact(model)
