"""Blocks of units that are gated and removed: their common interface, names and groups."""

import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gating.errors import InputTypeError
from gating.families.layouts import AttentionSpec, FeedForwardSpec, num_inputs, num_outputs, weight_dim, without_adapter
from gating.structure.edits import Edit
from gating.structure.hooks import Handle, hook_input
from gating.structure.sizes import GateSize, token_counter

_TOWERS = {
    "vision": r"vision|visual|image|(^|_)vit($|_)|pixel|video",
    "audio": r"audio|speech|sound|acoustic",
    "language": r"language|text|(^|_)(llm|lm)($|_)",
}


@dataclass(frozen=True)
class Block(ABC):
    """Units of one module that are gated and removed: the interface of a block for gates, budgets and proofs.

    Its dotted name is relative to the model without its task head, and unique in it. ``stored_as`` is the attribute of
    the module with a layout that discovery has found, or that a compact folder has; ``gates_weight`` says whether the
    weight that meets the features may be scaled in their place.
    """

    unit: ClassVar[str]
    stored_as: ClassVar[str]
    gates_weight: ClassVar[bool] = False

    name: str
    layer_idx: int
    module: nn.Module
    spec: Any

    @property
    @abstractmethod
    def kind(self) -> str:
        """Kind of the block among those of its unit, for which a budget can have a number."""

    @property
    def tower(self) -> str:
        """Part of the model that the block is in, such as ``language`` or ``vision``; see :func:`tower_of`."""
        return tower_of(self.name)

    @abstractmethod
    def registered_spec(self, *, shipped_only: bool = False) -> Any:
        """Return the layout of the module in the registry, or in the rows of this package alone, or None."""

    @property
    def is_guessed(self) -> bool:
        """Whether discovery has found the layout; that of a loaded compact model is stored in the module, too."""
        return bool(getattr(self.module, self.stored_as, None) == self.spec != self.registered_spec())

    @property
    def is_of_user(self) -> bool:
        """Whether the layout is in no row of this package."""
        return bool(self.registered_spec(shipped_only=True) != self.spec)

    @property
    def is_foreign(self) -> bool:
        """Whether a class or a layout is from elsewhere, so that it has to be proven before training."""
        # Discovery has tried the layouts that it stores, and so has the save of a record.
        is_tried = getattr(self.module, self.stored_as, None) == self.spec
        classes = {type(part).__module__.partition(".")[0] for part in self.module.modules()}
        return (self.is_of_user and not is_tried) or not classes <= {"torch", "transformers", "gating"}

    @property
    @abstractmethod
    def unit_ids(self) -> tuple[int, ...]:
        """Original numbers of the present units, or groups of units."""

    @property
    def size(self) -> int:
        """Number of present units."""
        return len(self.unit_ids)

    @property
    @abstractmethod
    def size_before(self) -> int:
        """Number of units before any removal."""

    @property
    def num_numbers(self) -> int:
        """How many numbers a request may name, as in ``prune_heads``: units, or groups of units."""
        return self.size_before

    @property
    def slot_ids(self) -> tuple[int, ...]:
        """Original numbers of the units in the slots: consecutive parts of the features, with padding if any."""
        return self.unit_ids

    @property
    @abstractmethod
    def slot_widths(self) -> tuple[int, ...]:
        """Number of features in each slot."""

    @property
    @abstractmethod
    def output_projection(self) -> nn.Module:
        """The layer whose inputs are the features; it gets the gates as its submodule ``gate``."""

    @property
    def input_weight(self) -> tuple[nn.Module, str, int]:
        """Module and name of the parameter that multiplies the features, and their dimension in it."""
        linear = without_adapter(self.output_projection)
        return linear, "weight", weight_dim(linear, "inputs")

    def layers(self) -> list[nn.Module]:
        """Return the layers that lose rows or columns with the units; the output projection is the last one."""
        return [self.output_projection]

    def other_outputs(self) -> Iterator[tuple[nn.Module, int]]:
        """Yield further layers that read the features, with the number of those that they read of each slot."""
        yield from ()

    def hook_features(self, function: Callable[[Tensor], Tensor | None]) -> Handle:
        """Call a function on the features, ``[..., sum(slot_widths)]``, in each use; a result replaces them."""
        return hook_input(self.output_projection, function)

    def hook_calls(self, calls: dict[str, float]) -> list[Handle]:
        """Count the ``tokens`` that reach the block in a forward pass, and the ``keys`` of attention."""
        return [self.hook_features(token_counter(calls))]

    @abstractmethod
    def gate_sizes(self, *, group_queries: bool = True) -> list[GateSize]:
        """Return the sizes of the gates of the block, in the order of its slots; each has equally many of them."""

    @abstractmethod
    def norms(self) -> Tensor:
        """Return the L1 norm of the weights of each slot, without biases, ``[num_slots]``; zero for padding."""

    def all_but_some(self) -> tuple[int, ...]:
        """Return the units that stay in the trial removal of a foreign block: all but those of its first gate.

        A block of one gate stays whole: some classes cannot be left without a unit.
        """
        return self.unit_ids[1:] or self.unit_ids

    @abstractmethod
    def plan_removal(self, kept: Collection[int]) -> list[Edit]:
        """Plan the removal of all units except the kept ones, given by their original numbers; no edits if all are."""


def tower_of(name: str) -> str:
    """Return the tower of a block: ``language``, ``vision``, ``audio``, or else the first part of its name.

    Layers without a name of their own are those of the language model.
    """
    for part in name.split("."):
        for tower, pattern in _TOWERS.items():
            if re.search(pattern, part):
                return tower
    first = name.partition(".")[0]
    return "language" if first in ("layers", "h", "layer", "blocks", "transformer", "wte") else first


def group_labels(blocks: Collection[Any]) -> list[str]:
    """Return the group of each block in a report: its kind, or its tower in a model with several kinds of input.

    A tower with several kinds of attention is several groups, such as ``language_decoder`` and ``language_cross``.
    """
    if len({block.tower for block in blocks} & _TOWERS.keys()) < 2:
        return [block.kind for block in blocks]
    kinds: dict[tuple[str, str], set[str]] = {}
    for block in blocks:
        kinds.setdefault((block.tower, block.unit), set()).add(block.kind)
    mixed = {tower for (tower, _), its_kinds in kinds.items() if len(its_kinds) > 1}
    return [f"{block.tower}_{block.kind}" if block.tower in mixed else block.tower for block in blocks]


def layer_number(name: str, *, default: int) -> int:
    """Return the first number in a dotted name, or the default."""
    number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    return int(number.group(1)) if number else default


def has_no_weight(module: nn.Module) -> bool:
    """Return whether a layer has no weight left to adapt, since its block has lost all heads or neurons."""
    return isinstance(module, (nn.Linear, Conv1D)) and 0 in (num_inputs(module), num_outputs(module))


def share_specs(model: nn.Module, other: nn.Module) -> None:
    """Copy the discovered specs of a model to another model of the same classes, in place."""
    modules = dict(other.named_modules())
    for name, module in model.named_modules():
        for attribute in ("attention_spec", "feed_forward_spec"):
            spec = getattr(module, attribute, None)
            if isinstance(spec, (AttentionSpec, FeedForwardSpec, dict)) and name in modules:
                setattr(modules[name], attribute, spec)


def whole_number(value: Any) -> int:
    """Return an integer, also of NumPy or PyTorch, as a Python integer; raise ``TypeError`` for others and booleans."""
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        raise InputTypeError("a boolean is not a whole number")
    return operator.index(value)
