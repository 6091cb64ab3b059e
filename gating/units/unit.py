"""The interface of a unit (heads, neurons, or a third one) for gates, budgets, removals and reports."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor, nn

from gating.discovery.ungated import UngatedModules
from gating.structure.blocks import Block
from gating.structure.hooks import Handle

__all__ = [
    "NUM_TOKENS",
    "AnyBlock",
    "Calls",
    "GateSize",
    "Metrics",
    "Unit",
    "UnitName",
    "has_foreign_classes",
    "token_counter",
]

AnyBlock = TypeVar("AnyBlock", bound=Block)
# Name of a unit in settings: ``heads``, ``neurons``, or that of a unit of one's own.
UnitName = str
# Length of an example for which multiply-accumulates are counted unless a run measures them on its data.
NUM_TOKENS = 128


@dataclass(frozen=True)
class GateSize:
    """Size of the units that one gate multiplies.

    Attributes:
        num_units: Number of present heads, or of neurons; padding does not count.
        num_features: Number of inputs of the output projection.
        num_weights: Multiply-accumulates for each token: entries of weight matrices, of as many experts as a token has.
        num_parameters: Entries of weights and biases.
        num_pair_features: Multiply-accumulates for each pair of a query and a key.
        state_size: Number of entries of the states of linear attention; zero for attention to keys and values.
        num_cached: Number of keys and values for each token that a decoder no longer caches without these units.
    """

    num_units: int
    num_features: int
    num_weights: float
    num_parameters: float
    num_pair_features: int = field(default=0, repr=False)
    state_size: int = field(default=0, repr=False)
    num_cached: int = field(default=0, repr=False)

    def macs(self, num_tokens: float = NUM_TOKENS, num_keys: float | None = None) -> float:
        """Return the multiply-accumulates of one example: projections, and the two products of attention.

        Args:
            num_tokens: Number of tokens, or of queries.
            num_keys: Number of keys that each query attends to; ``num_tokens`` if left out.

        Example:
            >>> GateSize(1, 64, 4 * 64 * 768, 0, num_pair_features=2 * 64).macs(128)
            27262976
        """
        if self.state_size:
            # Each token reads the state twice and changes it once.
            return (self.num_weights + 3 * self.state_size) * num_tokens
        pairs = self.num_pair_features * num_tokens * (num_tokens if num_keys is None else num_keys)
        return self.num_weights * num_tokens + pairs


@dataclass(frozen=True)
class Metrics:
    """Names of the logged numbers of a unit.

    Attributes:
        expected: Expected number of open units.
        open: Number of open units.
        target: Number of units that the objective aims at.
        block: Number of open units of a block, with its position among those of the unit to fill in.
        by_group: Whether open units are also logged for each kind or tower of blocks.
    """

    expected: str
    open: str
    target: str
    block: str
    by_group: bool = False


@dataclass
class Calls:
    """Numbers of tokens and keys in the calls of a block during one forward pass."""

    num_tokens: float = 0.0
    num_keys: int = 0


class Unit(ABC, Generic[AnyBlock]):
    """A kind of units that get gates and are removed together with everything that belongs to them alone.

    Attributes:
        name: Name in settings, in the plural, such as ``heads``.
        singular: One of them, such as ``head``.
        full_name: One of them where a reader may ask of what, such as ``attention head``.
        label: Its blocks in messages, such as ``attention``.
        gated: What gates stand for, such as ``heads or groups``.
        metrics: Names of its logged numbers.
        has_minimum: Whether ``min_per_layer`` of a budget is a number of these units.
        is_weighed: Whether a search weighs each gate by its number of units over the mean, as for small units of which
            single ones do not matter; else it counts units.
        gates_weight: Whether the weight that meets the features may be scaled in their place.
        is_tried_if_it_runs: Whether foreign blocks get gates untried if the model does not run on a batch made for it.
        why_inexact: Reason why gates cannot keep each number of units, with the largest size of a gate to fill in, and
            the remedy in words, in Python and on the command line.
        gate_lr: Learning rate of gates that no setting gives; the largest one of all gated units counts.
    """

    name: UnitName
    singular: str
    full_name: str
    label: str
    gated: str
    metrics: Metrics
    has_minimum: bool = False
    is_weighed: bool = False
    gates_weight: bool = False
    is_tried_if_it_runs: bool = False
    why_inexact: tuple[str, str, str, str]
    gate_lr: float = 0.1

    @abstractmethod
    def blocks(self, model: nn.Module) -> Iterator[AnyBlock]:
        """Yield the blocks of a model with a known layout, without any check."""

    @abstractmethod
    def search(
        self,
        model: nn.Module,
        *,
        group_size: int | None = None,
        discover: bool = False,
        probe: Mapping[str, Tensor] | None = None,
    ) -> tuple[Sequence[AnyBlock], list[UngatedModules]]:
        """Return the blocks of a model that can lose units, and the other modules that look like one.

        The arguments and errors are those of :func:`~gating.units.find_blocks`.
        """

    @abstractmethod
    def size(self, block: AnyBlock) -> int:
        """Return the number of present units of a block."""

    @abstractmethod
    def size_before(self, block: AnyBlock) -> int:
        """Return the number of units of a block before any removal."""

    def num_numbers(self, block: AnyBlock) -> int:
        """Return how many numbers a request may name, as in ``prune_heads``: units, or groups of units."""
        return self.size_before(block)

    def count(self, model: nn.Module) -> int:
        """Return the number of present units of a model; 0 if its blocks are not known."""
        return sum(self.size(block) for block in self.blocks(model))

    def kept(self, model: nn.Module, before: Mapping[str, Block]) -> dict[str, tuple[int, ...]]:
        """Return the original numbers of the present units of each block, by its name.

        Args:
            model: A model that has lost units.
            before: The blocks that could lose units, as they were before, by name.
        """
        return {block.name: block.unit_ids for block in self.blocks(model)}

    @abstractmethod
    def gate_sizes(self, block: AnyBlock, *, group_queries: bool = True) -> list[GateSize]:
        """Return the sizes of the gates of a block, in the order of its slots; each has equally many of them."""

    @abstractmethod
    def norms(self, block: AnyBlock) -> Tensor:
        """Return the L1 norm of the weights of each slot, without biases, ``[num_slots]``; zero for padding."""

    @abstractmethod
    def is_foreign(self, block: AnyBlock) -> bool:
        """Return whether the layout of a block is from outside of this package, so that it must be proven."""

    def all_but_some(self, block: AnyBlock, *, group_queries: bool) -> tuple[int, ...]:
        """Return the units that stay in the trial removal of a foreign block: all but those of its first gate.

        A block of one gate stays whole: some classes cannot be left without a unit.
        """
        return block.unit_ids[1:] or block.unit_ids

    def other_inputs(self, block: AnyBlock, scale: Tensor) -> Iterator[tuple[nn.Module, Tensor]]:
        """Yield further layers that read the features, with the factors of their inputs.

        Args:
            block: The block.
            scale: Factors of the features, ``[sum(slot_widths)]``.
        """
        yield from ()

    def hook_calls(self, block: AnyBlock, calls: Calls) -> list[Handle]:
        """Count the tokens that reach a block in a forward pass."""
        return [block.hook_features(token_counter(calls))]

    def part_in_words(self, kind: str | None) -> str:
        """Return the part of a model with a kind of blocks in words; all of it by default."""
        return "this model"

    def describe_gates(self, block: AnyBlock, num_gates: int) -> str:
        """Return the description of a block's gates in ``print(model)``."""
        return f"num_{self.name}={self.size(block)}, num_gates={num_gates}"


def has_foreign_classes(module: nn.Module) -> bool:
    """Return whether some part of a module has a class from outside of torch, transformers and this package."""
    classes = {type(part).__module__.partition(".")[0] for part in module.modules()}
    return not classes <= {"torch", "transformers", "gating"}


def token_counter(calls: Calls, *, per_token: int = 1) -> Callable[[Tensor], None]:
    """Return a function that counts tokens by their features, ``[..., num_features]``, each ``per_token`` times."""

    def count(features: Tensor) -> None:
        calls.num_tokens += features.numel() // max(1, features.shape[-1]) / per_token

    return count
