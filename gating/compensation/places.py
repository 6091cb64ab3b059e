"""Places where the output of a projection meets the residual stream, found by a change of its input."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gating.structure.attention import AttentionBlock
from gating.structure.blocks import Block
from gating.structure.hooks import Handle, Hooks, hook_input, with_forward
from gating.structure.sizes import weight_matrix

# Root mean square of the change of a projection's output over that of the stream: so large that no norm behind it is
# taken for a sum, also in 16 bits. Its size differs by position: a norm would make all positions alike.
_CHANGE, _SPREAD = 4.0, 1.5
# Share of a change that rounding explains, in 32 and in 16 bits.
_ROUNDING, _COARSE_ROUNDING = 1e-3, 0.05


class Slot(NamedTuple):
    """A tensor among the inputs or outputs of a module: its path, the side, and the position or name."""

    module: str
    side: str
    key: int | str


@dataclass(frozen=True)
class Place:
    """A slot with the residual stream behind a projection.

    The n-th use of the projection goes with the call ``first + n * stride`` of the module. The stream is the output of
    the projection times ``factor``, ``[hidden_size]``, plus something that does not depend on it.
    """

    slot: Slot
    first: int
    stride: int
    factor: Tensor


Observer = Callable[[Slot, int, Tensor], None]


def hook_projection(block: Block, function: Callable[[Tensor], Tensor | None]) -> Handle:
    """Call a function on the input of a block's output projection, in each use; a result replaces it."""
    handle = hook_input(block.output_projection, function)
    if isinstance(block, AttentionBlock) and block.spec.forward is not None and not block.spec.calls_projection:
        return with_forward(handle, block.module, block.spec.forward)
    return handle


def observe(root: nn.Module, observer: Observer, *, modules: Sequence[str] | None = None) -> Handle:
    """Call an observer on the tensors that modules take and return, with the number of the call, in their order.

    Args:
        root: The module with the modules.
        observer: Called with the slot of a tensor, the number of the call of its module, and the tensor.
        modules: Paths of the modules in the root; all by default.
    """
    calls: dict[str, int] = {}

    def before(path: str, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[path] = calls.get(path, -1) + 1
        for key, tensor in _tensors((*enumerate(args), *kwargs.items())):
            observer(Slot(path, "input", key), calls[path], tensor)

    def after(path: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        items = output.items() if isinstance(output, Mapping) else enumerate(_as_tuple(output))
        for key, tensor in _tensors(items):
            observer(Slot(path, "output", key), calls[path], tensor)

    handles: list[Handle] = []
    for path, module in root.named_modules():
        if modules is None or path in modules:
            handles.append(module.register_forward_pre_hook(partial(before, path), with_kwargs=True))
            handles.append(module.register_forward_hook(partial(after, path)))
    return Hooks(handles)


def _as_tuple(output: Any) -> Sequence[Any]:
    return output if isinstance(output, (tuple, list)) else (output,)


def _tensors(items: Any) -> Iterator[tuple[Any, Tensor]]:
    return ((key, one) for key, one in items if isinstance(one, Tensor) and one.is_floating_point())


def find_places(root: nn.Module, blocks: Sequence[Block], run: Callable[[], object]) -> dict[str, Place]:
    """Return the last place of each block's projection in a module, by the names of the blocks.

    With a norm after each block, that is the input of the norm; with a norm before it, a hidden state behind the block;
    where the output of the projection is changed before it is added, that output itself.

    Args:
        root: The module, in evaluation mode.
        blocks: Blocks in it.
        run: Runs the module on a few inputs, the same at each call.
    """
    uses: dict[str, list[Tensor]] = {block.name: [] for block in blocks}
    seen: dict[tuple[Slot, int], Tensor] = {}
    widths = {len(weight_matrix(block.output_projection)) for block in blocks}

    def keep(slot: Slot, call: int, tensor: Tensor) -> None:
        if tensor.dim() > 1 and tensor.shape[-1] in widths:
            seen[slot, call] = tensor.detach().clone()

    handles = [hook_projection(block, _appending(uses[block.name])) for block in blocks]
    _run_with([observe(root, keep), *handles], run)
    places = {block.name: _find_place(root, block, run, uses[block.name], seen) for block in blocks if uses[block.name]}
    return {name: place for name, place in places.items() if place is not None}


def _appending(found: list[Tensor]) -> Callable[[Tensor], None]:
    return lambda features: found.append(features.detach().clone())


def _run_with(handles: Sequence[Handle], run: Callable[[], object]) -> None:
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()


def _find_place(
    root: nn.Module,
    block: Block,
    run: Callable[[], object],
    uses: Sequence[Tensor],
    seen: Mapping[tuple[Slot, int], Tensor],
) -> Place | None:
    """Change the first input of a projection, and return the last slot that follows the change of its output."""
    weight, first = weight_matrix(block.output_projection).detach().float(), uses[0]
    generator = torch.Generator().manual_seed(0)
    sizes = (_SPREAD * (2 * torch.rand(*first.shape[:-1], 1, generator=generator) - 1)).exp()
    noise = (torch.randn(first.shape, generator=generator) * sizes).to(first.device)
    shape = (*first.shape[:-1], len(weight))
    stream = [tensor.float().square().mean() for tensor in seen.values() if tensor.shape == shape]
    if not stream or not first.shape[-1]:
        return None
    noise *= _CHANGE * torch.stack(stream).max().sqrt() / (noise @ weight.T).square().mean().sqrt()
    changed = (first + noise.to(first.dtype)).float()
    change = (changed - first.float()) @ weight.T
    pending, found = [changed.to(first.dtype)], []
    calls: dict[Slot, int] = {}
    for slot, call in seen:
        calls[slot] = max(call + 1, calls.get(slot, 0))

    def compare(slot: Slot, call: int, tensor: Tensor) -> None:
        before = seen.get((slot, call))
        # A module of several calls is called equally often for each use of the projection.
        if pending or tensor.shape != shape or before is None or before.shape != shape or calls[slot] % len(uses):
            return
        factor = _factor(tensor.float() - before.float(), change, coarse=tensor.dtype.itemsize < 4)
        if factor is not None:
            found.append(Place(slot, call, calls[slot] // len(uses), factor))

    handles = [observe(root, compare), hook_projection(block, lambda _: pending.pop() if pending else None)]
    _run_with(handles, run)
    return found[-1] if found else None


def _factor(difference: Tensor, change: Tensor, *, coarse: bool) -> Tensor | None:
    """Return the factor of each feature, ``[hidden_size]``, with which a change arrived; None if it is another one."""
    difference, change = difference.flatten(0, -2), change.flatten(0, -2)
    factor = (difference * change).sum(dim=0) / change.square().sum(dim=0).clamp_min(1e-30)
    size = difference.square().sum()
    error = (difference - factor * change).square().sum()
    limit = _COARSE_ROUNDING if coarse else _ROUNDING
    return factor if size > 0 and error <= limit**2 * size else None
