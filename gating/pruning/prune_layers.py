"""Removal of given layers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gating.errors import InputError, LayoutError
from gating.loader.saving import become_compact
from gating.proof.conditions import check_no_adapters
from gating.proof.outputs import OUT_OF_MEMORY, forward_outputs, rounding_of, rounding_tolerance
from gating.proof.probe import run_probe
from gating.proof.prove import ExpectedOutputs, find_problem_with_cache
from gating.pruning.empty_layers import passed_states, transformers_in
from gating.pruning.layers import drop_layers
from gating.pruning.prune import check_can_change, read_numbers
from gating.pruning.prune_report import PruneReport, UnitCounts
from gating.structure.blocks import tower_of
from gating.structure.edits import Undo, undo_edits
from gating.structure.layers import LayerList, find_layer_lists, iter_blocks


@torch.inference_mode(mode=False)
def prune_layers(
    model: nn.Module,
    layers_to_prune: Iterable[int] | Mapping[str, Iterable[int]],
    *,
    probe: Mapping[str, Tensor] | None = None,
) -> PruneReport:
    """Remove whole layers from a model, in place: their attention and feed-forward blocks and their norms.

    What went into a removed layer goes into the next one. The outputs on the probe are compared with those of the model
    whose layers pass their inputs on. The configuration then describes fewer layers, so that a model of whole layers
    saves as a plain model of transformers.

    Args:
        model: The model to change.
        layers_to_prune: Numbers of the layers to remove; in a model with several lists of layers, for the name of each,
            such as ``decoder.layers``, or for a part of it, such as ``decoder``. Layers are numbered as they are in the
            model now; -1 is the last one. Each list keeps a layer.
        probe: Batch for the check, as keyword arguments of the model; by default made from its configuration.

    Returns:
        The remaining heads, neurons and layers, by their names and numbers in the original model.

    Raises:
        ValueError: A layer or list does not exist, a list would be left without a layer, no configuration describes the
            model without the layers, or other layers depend on them. The model is unchanged.
        TypeError: A layer is not a whole number.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=4, vocab_size=10))
        >>> prune_layers(model, [1, -1]).kept_layers
        {'encoder.layer': (0, 2)}
        >>> model.config.num_hidden_layers
        2
    """
    check_can_change(model)
    check_no_adapters(model)
    requests = _read_request(model, layers_to_prune)
    removed = {module for _, layers, numbers in requests for module in (layers.layers[number] for number in numbers)}
    blocks, before = list(iter_blocks(model)), UnitCounts.of(model)
    report = PruneReport.of(model, before, blocks)
    expected = _skipped_outputs(model, removed, probe)
    done: list[Undo] = []
    try:
        for transformer, layers, numbers in requests:
            kept = [number for number in range(len(layers.layers)) if number not in numbers]
            done += drop_layers(transformer, layers, kept)
        _check_equal(model, expected)
        become_compact(model)
    except BaseException:
        undo_edits(done)
        raise
    return report.without_layers(model)


def _read_request(model: nn.Module, request: Any) -> list[tuple[PreTrainedModel, LayerList, set[int]]]:
    """Return the lists of layers that lose some, with the model of transformers that each is in, and the numbers."""
    lists = [(one, layers) for one in transformers_in(model) for layers in find_layer_lists(one)]
    found: dict[str, tuple[PreTrainedModel, LayerList, set[int]]] = {}
    for name, given in request.items() if isinstance(request, Mapping) else [(None, request)]:
        matches = [pair for pair in lists if name in (None, pair[1].name)] or [
            pair for pair in lists if name in (*pair[1].name.split("."), tower_of(f"{pair[1].name}.0"))
        ]
        if len(matches) != 1:
            number, named = "several" if matches else "no", "" if name is None else f" named {name!r}"
            names = ", ".join(layers.name for _, layers in matches or lists) or "none of a known layout"
            raise InputError(
                f"{type(model).__name__} has {number} lists of layers{named}. Give {{name: [layer, ...]}} for {names}."
            )
        (owner, layers) = matches[0]
        numbers = read_numbers(given, len(layers.layers), what="layer", place=layers.name)
        found.setdefault(layers.name, (owner, layers, set()))[2].update(numbers)
    for _, layers, numbers in found.values():
        if len(numbers) == len(layers.layers):
            raise InputError(f"{layers.name} would lose all of its {len(numbers)} layers: keep one.")
    # Decoders first: an encoder may have to be as deep.
    order = [layers.name for _, layers in reversed(lists)]
    return sorted((one for one in found.values() if one[2]), key=lambda one: order.index(one[1].name))


def _skipped_outputs(
    model: nn.Module, removed: Iterable[nn.Module], probe: Mapping[str, Tensor] | None
) -> ExpectedOutputs:
    """Record the outputs of a model whose layers in a set pass their inputs on."""
    probe, outputs = run_probe(model, probe)
    with _skipped(removed) as calls:
        skipped = forward_outputs(model, probe)
    if missing := [type(module).__name__ for module, called in calls.items() if not called]:
        raise InputError(f"The outputs for this batch do not need a {missing[0]} to remove: give a probe that does.")
    with _skipped(removed, factor=1 - rounding_of(outputs)):
        perturbed = forward_outputs(model, probe)
    tolerance = rounding_tolerance(skipped, perturbed)
    has_cache = find_problem_with_cache(model, probe, tolerance) is None
    return ExpectedOutputs(probe, skipped, tolerance, has_cache=has_cache)


@contextmanager
def _skipped(removed: Iterable[nn.Module], *, factor: float = 1.0) -> Iterator[dict[nn.Module, bool]]:
    """Replace the hidden states that layers return by their inputs, times a factor; other outputs stay."""
    calls = dict.fromkeys(removed, False)

    def skip(layer: nn.Module, arguments: Sequence[Any], named: Mapping[str, Any], output: Any) -> Any:
        states = passed_states(arguments, named, output)
        if states is None:
            raise InputError(f"{type(layer).__name__} does not return what it is given, changed: it cannot be removed.")
        calls[layer] = True
        passed = states[0] * factor
        return passed if isinstance(output, Tensor) else type(output)([passed, *output[1:]])

    handles = [layer.register_forward_hook(skip, with_kwargs=True) for layer in calls]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _check_equal(model: nn.Module, expected: ExpectedOutputs) -> None:
    """Raise ``LayoutError`` unless a model without layers has the outputs of the one that skips them."""
    try:
        problem = expected.find_problem(model, expected.difference(model))
    except OUT_OF_MEMORY:
        raise
    except Exception as error:
        problem = f"it does not run ({type(error).__name__}: {error})"
    if problem is not None:
        raise LayoutError(
            f"Without these layers, {type(model).__name__} differs from the model that skips them: {problem}. Other "
            "parts depend on the numbers of layers or on what these compute. Nothing was changed; remove other layers."
        )
