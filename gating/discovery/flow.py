"""Discovery of feed-forward blocks by the flow of data, for layers whose names the registry lacks.

A feed-forward block maps a hidden state to a wider one, applies elementwise functions to it, and maps it back. In the
autograd graph of one pass, the input of its down projection depends on nothing but the outputs of its up projections,
and each neuron on its own rows only. The removal of neurons is then proven like that of heads.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gating.discovery.dependence import why_neurons_depend
from gating.discovery.lookalikes import parts_of_blocks
from gating.discovery.refusals import sort_blocks
from gating.discovery.trace import is_linear, trace_feed_forward
from gating.errors import InputError
from gating.families.feed_forward import find_feed_forward_spec
from gating.families.layouts import FeedForwardSpec
from gating.families.linear import num_inputs, num_outputs, without_adapter
from gating.proof.conditions import check_no_adapters
from gating.proof.probe import run_probe
from gating.proof.prove import try_removal
from gating.structure.feed_forward import FeedForwardBlock, iter_feed_forward_blocks

__all__ = ["discover_feed_forward_specs"]


@torch.inference_mode(mode=False)
def discover_feed_forward_specs(model: nn.Module, *, probe: Mapping[str, Tensor] | None = None) -> None:
    """Set the attribute ``feed_forward_spec`` of all modules with a feed-forward block that have no spec yet, in place.

    Such a module is the smallest that holds all projections of its block. Of two blocks in one such module, only the
    first is found. The probe is run, or a batch that is made for the model.

    Raises:
        ValueError: The model has adapters or does not run on the probe with gradients, or its outputs after a removal
            of neurons differ from those with masked neurons. No attribute is set then.
    """
    candidates = _find_candidates(model)
    if not candidates:
        return
    check_no_adapters(model)
    batch, _ = run_probe(model, probe)
    try:
        traced = trace_feed_forward(model, candidates, batch)
    except Exception as error:  # Kernels without gradients raise errors of all kinds.
        raise InputError(
            f"discover=True needs a forward pass with gradients, on which {type(model).__name__} fails "
            f"({type(error).__name__}: {error}): describe its layers with gating.register_feed_forward_spec."
        ) from error
    found: dict[nn.Module, FeedForwardSpec] = {}
    for down, ups in traced.items():
        owner = _name_of_owner([down, *(up for up, _ in ups)])
        module = model.get_submodule(owner)
        if module not in found and find_feed_forward_spec(module) is None:
            start = len(owner) + 1 if owner else 0
            found[module] = FeedForwardSpec(tuple((up[start:], layout) for up, layout in ups), down[start:])
    if not found:
        return
    try:
        for module, spec in found.items():
            module.feed_forward_spec = spec  # type: ignore[assignment]
        blocks, refused = sort_blocks(iter_feed_forward_blocks(model), why_neurons_depend)
        for block, reason in refused:
            if block.module in found:
                name = f"{block.name} ({type(block.module).__name__})"
                raise InputError(f"discover=True found {name}, but {reason}. Nothing was changed.")
        _prove_removal(model, [block for block in blocks if block.module in found], batch)
    except BaseException:
        for module in found:
            del module.feed_forward_spec
        raise


def _find_candidates(model: nn.Module) -> dict[nn.Module, str]:
    """Return the linear layers, with their names, that may be projections of unknown blocks; none without a pair."""
    known = parts_of_blocks(model, iter_feed_forward_blocks(model))
    for module in model.modules():
        # The two layers of a LoRA adapter look like a block.
        known |= set(module.modules()) - set(without_adapter(module).modules())
    linears = {module: name for name, module in model.named_modules() if is_linear(module) and module not in known}
    sizes = Counter((num_inputs(linear), num_outputs(linear)) for linear in linears)
    is_pair = any(
        sizes[hidden, rows] > ((hidden, rows) == (width, hidden))  # one square layer is no pair
        for width, hidden in sizes
        for rows in (width, 2 * width)
    )
    return linears if is_pair else {}


def _name_of_owner(names: Sequence[str]) -> str:
    """Return the name of the smallest module that holds all named modules."""
    owner: list[str] = []
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        owner.append(parts[0])
    return ".".join(owner)


def _prove_removal(model: nn.Module, blocks: Sequence[FeedForwardBlock], probe: Mapping[str, Tensor]) -> None:
    """Remove half of the neurons of all blocks, compare with masked neurons, and undo the removal."""
    try:
        _try_removal(model, blocks, probe)
    except ValueError:
        for block in blocks:
            try:
                _try_removal(model, [block], probe)
            except ValueError as error:
                problem = str(error)
                name = f"{block.name} ({type(block.module).__name__})"
                raise InputError(f"discover=True found {name}, but {problem[0].lower()}{problem[1:]}") from error
        raise


def _try_removal(model: nn.Module, blocks: Sequence[FeedForwardBlock], probe: Mapping[str, Tensor]) -> None:
    halved = [block.regrouped(max(1, block.width_before // 2)) for block in blocks]
    kept = {block.name: block.group_ids[1:] for block in halved}
    try_removal(model, halved, kept, probe=probe)
