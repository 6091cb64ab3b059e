"""Removal of layers that are left without any unit, and add nothing or a bias to the hidden states."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gating.errors import InputError, UserError
from gating.families.layouts import without_adapter
from gating.proof.outputs import forward_outputs, max_relative_difference, tolerance_for
from gating.proof.prove import MaskedOutputs, check_proven
from gating.pruning.layers import drop_layers
from gating.structure.edits import Edit, Undo, apply_edits, undo_edits, whole
from gating.structure.layers import LayerList, find_layer_lists


def remove_empty_layers(model: nn.Module, masked: MaskedOutputs) -> list[Undo]:
    """Take the layers without any unit out of a model whose removal is proven, in place, where that is exact.

    The biases that such a layer adds go to the layer before it. A layer stays, empty, where the outputs would differ,
    where no configuration describes the model without it, or as the last one. The result undoes it.
    """
    done: list[Undo] = []
    try:
        for transformer in transformers_in(model):
            for name in empty_lists(transformer):
                passing = passing_layers(
                    model, layer_list(transformer, name), [expected.probe for expected in masked.passes]
                )
                gone = _remove(model, transformer, name, passing, masked) if passing else []
                done += gone
                for number in () if gone else reversed(passing):
                    done += _remove(model, transformer, name, [number], masked)
        return done
    except BaseException:
        undo_edits(done)
        raise


def drop_passing_layers(model: nn.Module, batch: Mapping[str, Tensor]) -> None:
    """Take the layers that :func:`remove_empty_layers` would take out of a copy that is only timed, without a proof.

    A pass of the batch shows which layers pass their inputs on. Biases of these layers are lost.
    """
    for transformer in transformers_in(model):
        for name in empty_lists(transformer):
            layers = layer_list(transformer, name)
            kept = staying_layers(layers, passing_layers(model, layers, [batch]))
            if len(kept) < len(layers.layers):
                with suppress(UserError):
                    drop_layers(transformer, layers, kept)


def transformers_in(model: nn.Module) -> list[PreTrainedModel]:
    """Return the models of transformers in a module that are not in another one; the model itself if it is one."""
    if isinstance(model, PreTrainedModel):
        return [model]
    return [found for child in model.children() for found in transformers_in(child)]


def passed_states(arguments: Sequence[Any], named: Mapping[str, Any], output: Any) -> tuple[Tensor, Tensor] | None:
    """Return the hidden states that go into a layer and come out of it; None for a layer of another form."""
    before = arguments[0] if arguments else named.get("hidden_states")
    after = output[0] if isinstance(output, (tuple, list)) and output else output
    if isinstance(before, Tensor) and isinstance(after, Tensor) and before.shape == after.shape:
        return before, after
    return None


def empty_lists(model: nn.Module) -> list[str]:
    """Return the names of the lists with empty layers, decoders first: an encoder may have to be as deep."""
    return [layers.name for layers in find_layer_lists(model) if layers.empty()][::-1]


def layer_list(model: nn.Module, name: str) -> LayerList:
    """Return the list of layers of a name in a model."""
    return next(layers for layers in find_layer_lists(model) if layers.name == name)


def passing_layers(model: nn.Module, layers: LayerList, batches: Iterable[Mapping[str, Tensor]]) -> list[int]:
    """Return the numbers of the empty layers that were called and passed their inputs on, but for their biases."""
    differences: dict[int, float] = {}

    def compare(number: int, bias: Tensor | None, arguments: Any, named: Any, output: Any) -> None:
        states = passed_states(arguments, named, output)
        if states is None or (bias is not None and bias.shape != states[0].shape[-1:]):
            differences[number] = float("inf")
            return
        before, after = states
        expected = before if bias is None else before + bias
        relative = max_relative_difference([expected], [after]) / tolerance_for(after.dtype)
        differences[number] = max(differences.get(number, 0.0), relative)

    handles = []
    for number in layers.empty():
        bias = _added(layers, number)
        hook = lambda _m, args, kwargs, output, n=number, b=bias: compare(n, b, args, kwargs, output)  # noqa: E731
        handles.append(layers.layers[number].register_forward_hook(hook, with_kwargs=True))
    try:
        for batch in batches:
            forward_outputs(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return sorted(number for number, difference in differences.items() if difference <= 1)


def _remove(
    model: nn.Module, transformer: PreTrainedModel, name: str, numbers: Sequence[int], masked: MaskedOutputs
) -> list[Undo]:
    """Take some empty layers out of a list, and return the functions that bring them back; none if none could go."""
    layers = layer_list(transformer, name)
    kept = staying_layers(layers, numbers)
    if len(kept) == len(layers.layers):
        return []
    done: list[Undo] = []
    try:
        done += apply_edits(list(plan_biases(layers, kept)))
        done += drop_layers(transformer, layers, kept)
        check_proven(model, masked)
    except UserError:
        undo_edits(done)
        return []
    except BaseException:
        undo_edits(done)
        raise
    return done


def staying_layers(layers: LayerList, leaving: Sequence[int]) -> list[int]:
    """Return the numbers of the layers that stay if others leave, at least one."""
    kept = [number for number in range(len(layers.layers)) if number not in leaving]
    # The first layer takes the biases of those after it.
    needs_first = not kept or any(_added(layers, number) is not None for number in range(kept[0]))
    return [0, *kept] if needs_first else kept


def _added(layers: LayerList, number: int) -> Tensor | None:
    """Return the sum of the biases that an empty layer adds, ``[hidden_size]``; None if it has none but zeros."""
    biases = []
    for block in layers.blocks[number]:
        bias = getattr(without_adapter(block.output_projection), "bias", None)
        # Of a sharded model, all processes get the whole bias.
        if isinstance(bias, Tensor) and bool(((bias := whole(bias.detach())) != 0).any()):
            biases.append(bias)
    return torch.stack(biases).sum(dim=0) if biases and len({bias.shape for bias in biases}) == 1 else None


def plan_biases(layers: LayerList, kept: Sequence[int]) -> Iterator[Edit]:
    """Plan to add the biases of layers that leave to the last block of the layer before, which must have one."""
    sums: dict[int, Tensor] = {}
    for number in range(len(layers.layers)):
        bias = None if number in kept else _added(layers, number)
        if bias is not None:
            before = max(other for other in kept if other < number)
            sums[before] = sums[before] + bias if before in sums else bias
    for number, added in sums.items():
        last = layers.blocks[number][-1]
        linear = cast("Any", without_adapter(last.output_projection))
        own = getattr(linear, "bias", None)
        if not isinstance(own, nn.Parameter) or own.shape != added.shape:
            raise InputError(f"{last.name} has no bias to which those of the next layers can be added.")
        yield Edit(linear, "bias", nn.Parameter(whole(own.detach()) + added, requires_grad=own.requires_grad))
