"""Parts of two models that are run by themselves: layer after layer, or whole passes where that is not possible."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gating.compensation.places import hook_projection
from gating.proof.outputs import max_relative_difference, tolerance_for
from gating.structure.blocks import Block
from gating.structure.layers import LayerList, find_layer_lists, layers_record

Batch = Mapping[str, Any]
# Numbers of the two models in pairs of modules, hidden states and arguments.
DENSE, COMPACT = 0, 1
# Rounding errors that may add up where a layer is called by itself.
_ROUNDINGS = 10
# A change of the hidden states before the first layer, by which arguments of later ones are told that depend on them.
_CHANGE = 1.5


class Enough(Exception):  # noqa: N818
    """End of a call whose other outputs are not needed."""


@dataclass
class Part:
    """A part of both models with some blocks, in the order of the forward pass.

    Attributes:
        roots: The module of the dense and of the compact model.
        blocks: The blocks of the compact model that are in it, with those of the dense model.
        call: Runs one of the modules on the input of a batch, and returns its output.
        is_layer: Whether the part is one layer, so that its dense outputs fit into memory, and it may be left early.
        outputs: Hidden states after the dense layer, by the number of the batch.
    """

    roots: tuple[nn.Module, nn.Module]
    blocks: list[tuple[Block, Block]]
    call: Callable[[int, int], Any]
    is_layer: bool
    outputs: dict[int, Tensor] = field(default_factory=dict)

    def run(self, side: int, number: int) -> None:
        """Run the dense or the compact module on a batch; a pass that raises ``Enough`` ends."""
        try:
            output = self.call(side, number)
        except Enough:
            return
        if side == DENSE and self.is_layer:
            self.outputs[number] = output


def iterate_parts(
    models: tuple[nn.Module, nn.Module], pairs: Sequence[tuple[Block, Block]], batches: Sequence[Batch]
) -> Iterator[Part]:
    """Yield the parts of a dense and a compact model with all pairs of blocks, in the order of the forward pass.

    A list of layers is called layer by layer, if its layers pass nothing on but hidden states; of all other blocks the
    part are the models themselves. The first batch is the one for trials. The compact part has to be changed before the
    next one is asked for.
    """
    whole: list[tuple[Block, Block]] = []
    for layers, own in _by_list(models, pairs, batches[0]):
        walk = None if layers is None else LayerWalk.of(models, layers, own, batches)
        if walk is None:
            whole += own
            continue
        if whole:
            yield _whole(models, whole, batches)
            whole = []
        yield from walk.parts()
    if whole:
        yield _whole(models, whole, batches)


def _whole(models: tuple[nn.Module, nn.Module], pairs: Sequence[tuple[Block, Block]], batches: Sequence[Batch]) -> Part:
    return Part(models, list(pairs), lambda side, number: run_seeded(models[side], (), batches[number]), is_layer=False)


def run_seeded(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call a module with the same random numbers each time: some encoders mask patches at random in evaluation."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return module(*args, **kwargs)


def _by_list(
    models: tuple[nn.Module, nn.Module], pairs: Sequence[tuple[Block, Block]], trial: Batch
) -> Iterator[tuple[LayerList | None, list[tuple[Block, Block]]]]:
    """Yield the lists of layers with their blocks in the order of the forward pass; None for blocks outside.

    Lists that are called in turns, such as those of two towers, do not count as lists.
    """
    dense, order = models[DENSE], list[str]()
    handles = [hook_projection(one, lambda _, name=one.name: order.append(name)) for one, _ in pairs]  # type: ignore[misc]
    try:
        run_seeded(dense, (), trial)
    finally:
        for handle in handles:
            handle.remove()
    lists = find_layer_lists(dense)
    of_block = {one.name: layers for layers in lists for blocks in layers.blocks for one in blocks}
    by_name = {one.name: (one, other) for one, other in pairs}
    # Blocks that the batch does not reach have no place in the order, and are not seen again.
    groups: list[tuple[LayerList | None, list[tuple[Block, Block]]]] = []
    for name in dict.fromkeys(order):
        layers = of_block.get(name)
        if not groups or groups[-1][0] is not layers:
            groups.append((layers, []))
        groups[-1][1].append(by_name[name])
    once = [layers for layers, _ in groups if layers is not None]
    for layers, own in groups:
        yield (None if layers is None or once.count(layers) > 1 else layers), own


# Positional and keyword arguments of a layer without its hidden states.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class LayerWalk:
    """A list of layers of both models that are called one after another, with their hidden states between them.

    ``lists`` has the layers of the dense model, and that of the compact model for each, or None if it has left.
    """

    lists: tuple[list[nn.Module], list[nn.Module | None]]
    pairs: list[list[tuple[Block, Block]]]
    states: tuple[list[Tensor], list[Tensor]]
    arguments: tuple[list[list[Arguments]], list[list[Arguments]]]

    @classmethod
    def of(
        cls,
        models: tuple[nn.Module, nn.Module],
        layers: LayerList,
        pairs: Sequence[tuple[Block, Block]],
        batches: Sequence[Batch],
    ) -> "LayerWalk | None":
        """Catch the inputs of a list of layers on all batches; None if the layers cannot be called one by one."""
        dense = list(layers.layers)
        own: Any = models[COMPACT].get_submodule(layers.full_name)
        before, after = (layers_record(model).get("kept", {}).get(layers.name) for model in models)
        numbers = list(before or range(len(dense)))
        places = {number: place for place, number in enumerate(after or numbers)}
        lists = dense, [own[places[number]] if number in places else None for number in numbers]
        names = {one.name: place for place, blocks in enumerate(layers.blocks) for one in blocks}
        by_layer = [[pair for pair in pairs if names[pair[0].name] == place] for place in range(len(dense))]
        walk = cls(lists, by_layer, ([], []), ([], []))
        for side, model in enumerate(models):
            if not walk._is_possible(side, model, batches[0]):
                return None
            for batch in batches:
                states, arguments = walk._catch(side, model, batch)
                walk.states[side].append(states[0])
                walk.arguments[side].append(arguments)
        return walk

    def parts(self) -> Iterator[Part]:
        """Yield a part for each layer with blocks, and go on with the hidden states after it."""
        for place, (dense, compact) in enumerate(zip(*self.lists, strict=True)):
            part = Part(
                (dense, dense if compact is None else compact),
                self.pairs[place],
                lambda side, number, place=place: self._call(side, place, number),  # type: ignore[misc]
                is_layer=True,
            )
            if part.blocks:
                yield part
            for number in range(len(self.states[DENSE])):
                if compact is not None:
                    self.states[COMPACT][number] = self._call(COMPACT, place, number)
                if number not in part.outputs:
                    part.run(DENSE, number)
            for number, output in part.outputs.items():
                self.states[DENSE][number] = output

    def _call(self, side: int, place: int, number: int, state: Tensor | None = None) -> Tensor:
        """Return the hidden states after a layer."""
        state = self.states[side][number] if state is None else state
        args, kwargs = self.arguments[side][number][place]
        if args:
            args = (state, *args[1:])
        else:
            kwargs = {**kwargs, "hidden_states": state}
        output = run_seeded(self.lists[side][place], args, kwargs)  # type: ignore[arg-type]
        first: Tensor = output[0] if isinstance(output, (tuple, list)) else output
        return first

    def _catch(
        self, side: int, model: nn.Module, batch: Batch, *, factor: float = 1.0
    ) -> tuple[list[Tensor], list[Arguments]]:
        """Run a model, and return the hidden states before its first layer, and the arguments of all; lists by layer.

        With a factor, the hidden states before the first layer are multiplied by it, and those before all are returned.
        """
        states: dict[int, Tensor] = {}
        found: list[Arguments] = [((), {}) for _ in self.lists[side]]
        first = next(place for place, layer in enumerate(self.lists[side]) if layer is not None)

        def before(place: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if place in states:
                raise _CannotWalkError
            state = args[0] if args else kwargs.get("hidden_states")
            if not isinstance(state, Tensor):
                raise _CannotWalkError
            states[place] = state.detach() if place == first or factor != 1 else state.new_empty(0)
            found[place] = (None, *args[1:]) if args else (), {k: v for k, v in kwargs.items() if k != "hidden_states"}
            if place == first and factor != 1:
                changed = state * factor
                return (changed, *args[1:]) if args else args, kwargs if args else {**kwargs, "hidden_states": changed}
            return None

        handles = [
            layer.register_forward_pre_hook(
                lambda _, args, kwargs, place=place: before(place, args, kwargs), with_kwargs=True
            )
            for place, layer in enumerate(self.lists[side])
            if layer is not None
        ]
        try:
            run_seeded(model, (), batch)
        finally:
            for handle in handles:
                handle.remove()
        return [states[place] for place in sorted(states)], found

    def _is_possible(self, side: int, model: nn.Module, trial: Batch) -> bool:
        """Return whether the layers pass nothing on but hidden states, and give the same by themselves."""
        places = [place for place, layer in enumerate(self.lists[side]) if layer is not None]
        try:
            _, arguments = self._catch(side, model, trial)
            states, others = self._catch(side, model, trial, factor=_CHANGE)
            same = all(_are_equal(arguments[place], others[place]) for place in places)
            if not same or len(states) < len(places) or not len(states):
                return False
            self.arguments[side].append(arguments)
            state = states[0] * _CHANGE
            for number, place in enumerate(places):
                state = self._call(side, place, 0, state)
                expected = states[number + 1] if number + 1 < len(places) else state
                tolerance = _ROUNDINGS * tolerance_for(state.dtype)
                if not max_relative_difference([expected], [state]) <= tolerance:
                    return False
            return True
        except _CannotWalkError:
            return False
        finally:
            self.arguments[side].clear()


class _CannotWalkError(Exception):
    """A list of layers that are not called once each, with hidden states as their first argument."""


def _are_equal(one: Any, other: Any) -> bool:
    """Return whether two arguments are plain values or tensors, and equal: a cache or a table passes on more."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and bool(torch.equal(one, other))
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_are_equal, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_are_equal(one[name], other[name]) for name in one)
    return isinstance(one, (bool, int, float, str, torch.dtype, type(None))) and one == other
