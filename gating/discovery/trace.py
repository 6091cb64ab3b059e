"""The flow of data between the linear layers of a model, read from the autograd graph of one pass.

The graph is cut behind every linear layer and in front of every layer of the model, so that it stays small, and is
analyzed in front of every linear layer, so that none of it is kept.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from transformers.pytorch_utils import Conv1D

from gating.families.layouts import UpLayout
from gating.families.linear import num_inputs, num_outputs
from gating.proof.outputs import forward_outputs

__all__ = ["Ups", "is_linear", "trace_feed_forward"]

Ups = tuple[tuple[str, UpLayout], ...]


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer."""
    return isinstance(module, (nn.Linear, Conv1D))


def trace_feed_forward(
    model: nn.Module, candidates: Mapping[nn.Module, str], probe: Mapping[str, Tensor]
) -> dict[str, Ups]:
    """Find the feed-forward blocks in the flow of data of one pass.

    A linear layer is a down projection if the input of each of its calls depends, neuron by neuron and position by
    position, on the outputs of the same up projections, and on nothing else: no other layer, and no parameter with more
    than one element, as of norms and convolutions. The input of the up projections has the width of the down
    projection's output, and their outputs serve nothing else. Neurons without gradient, as behind a ReLU, are no
    evidence.

    Args:
        model: The model; its parameters, mode and random numbers stay as they are.
        candidates: The linear layers, with their names, that may be part of a block.
        probe: The batch, as the model's keyword arguments.

    Returns:
        For the name of each down projection, in the order of calls, the names and layouts of its up projections.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
        >>> trace_feed_forward(model, {model[0]: "0", model[2]: "2"}, {"input": torch.randn(3, 4)})
        {'2': (('0', 'plain'),)}
    """
    trace = _Trace(candidates)
    with _requiring_gradients(model), trace.recording(model):
        # Copies, because tensors made in inference mode cannot be part of a graph.
        batch = {name: tensor.clone() for name, tensor in probe.items()}
        for output in forward_outputs(model, batch, with_gradients=True):
            trace.use(output)
    return dict(trace.found())


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a linear layer.

    Attributes:
        module: The layer.
        num_positions: Number of vectors that it maps.
    """

    module: nn.Module
    num_positions: int


class _Source(torch.autograd.Function):
    """A copy of a tensor, at which the graph begins; its node names the call that returned the tensor, if any."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, call: _Call | None) -> Tensor:
        ctx.source_call = call
        # A copy, because some models change the output of a layer in place.
        return tensor.clone()

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _begin_graph(tensor: Tensor, call: _Call | None = None) -> Any:
    return _Source.apply(tensor.detach().requires_grad_(), call)  # type: ignore[no-untyped-call]


class _Trace:
    """The calls of linear layers in one pass, and the calls that feed the candidates among them."""

    def __init__(self, candidates: Mapping[nn.Module, str]) -> None:
        self._candidates = candidates
        self._calls: dict[nn.Module, set[_Call]] = defaultdict(set)
        self._num_uses: Counter[_Call] = Counter()
        # For each call of a candidate, the up projections that feed it; empty if it is no down projection.
        self._feeds: dict[nn.Module, list[dict[_Call, UpLayout]]] = defaultdict(list)

    @contextmanager
    def recording(self, model: nn.Module) -> Iterator[None]:
        """Record the passes of a model inside a ``with`` block."""
        with ExitStack() as stack:
            for module in model.modules():
                if is_linear(module):
                    # Before hooks that change the input, such as those of gates.
                    before = module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True)
                    stack.callback(before.remove)
                    stack.callback(module.register_forward_hook(self._leave).remove)
                elif isinstance(module, (nn.ModuleList, nn.Sequential)):
                    for layer in module:
                        if sum(map(is_linear, layer.modules())) > 1:
                            stack.callback(layer.register_forward_pre_hook(self._cut, with_kwargs=True).remove)
            yield

    def use(self, tensor: Tensor) -> list[Any]:
        """Count a use of all calls that a tensor depends on.

        Returns:
            The nodes of these calls; empty if the tensor depends on something else, too.
        """
        nodes, depends_on_more = _find_sources(tensor)
        self._num_uses.update(node.source_call for node in nodes if node.source_call is not None)
        return [] if depends_on_more or any(node.source_call is None for node in nodes) else nodes

    def found(self) -> Iterator[tuple[str, Ups]]:
        """Yield the down projections with their up projections, which are those of all calls and serve nothing else."""
        order = {module: position for position, module in enumerate(self._candidates)}
        for down, feeds in self._feeds.items():
            layouts, *others = ({call.module: layout for call, layout in feed.items()} for feed in feeds)
            calls = {call for feed in feeds for call in feed}
            serves_more = any(self._num_uses[call] > 1 for call in calls) or any(
                self._calls[up] - calls for up in layouts
            )
            if layouts and all(other == layouts for other in others) and not serves_more:
                ups = sorted(layouts, key=lambda up: order[up])
                yield self._candidates[down], tuple((self._candidates[up], layouts[up]) for up in ups)

    def _enter(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        inputs: Tensor = next(iter((*arguments, *named.values())))
        # Without a graph, and in an expert without tokens, there is no evidence.
        if torch.is_grad_enabled() and inputs.numel():
            nodes = self.use(inputs)
            if module in self._candidates:
                self._feeds[module].append(self._find_ups(module, inputs, nodes))

    def _leave(self, module: nn.Module, _arguments: tuple[Any, ...], output: Any) -> Any:
        if not (isinstance(output, Tensor) and output.requires_grad and output.numel()):
            return output
        call = _Call(module, num_positions=output.shape[:-1].numel())
        self._calls[module].add(call)
        return _begin_graph(output, call)

    def _cut(self, _layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        def cut(value: Any) -> Any:
            if not (isinstance(value, Tensor) and value.requires_grad):
                return value
            self.use(value)
            return _begin_graph(value)

        return tuple(map(cut, arguments)), {name: cut(value) for name, value in named.items()}

    def _find_ups(self, down: nn.Module, inputs: Tensor, nodes: list[Any]) -> dict[_Call, UpLayout]:
        """Return the calls of up projections that feed a call; none if it is no call of a down projection."""
        width, hidden = num_inputs(down), num_outputs(down)
        for call in (node.source_call for node in nodes):
            has_sizes = num_inputs(call.module) == hidden and num_outputs(call.module) in (width, 2 * width)
            same_positions = call.num_positions == inputs.shape[:-1].numel()
            if call.module not in self._candidates or not has_sizes or not same_positions:
                return {}
        if not nodes or width < 2:
            return {}
        layouts = _find_layouts(inputs, nodes)
        if None in layouts or not _keeps_positions(inputs, nodes):
            return {}
        return {node.source_call: layout for node, layout in zip(nodes, layouts, strict=True) if layout is not None}


def _find_sources(tensor: Tensor) -> tuple[list[Any], bool]:
    """Return the nodes at which the graph of a tensor begins, and whether it has parameters of several elements."""
    if tensor.grad_fn is None:
        return [], tensor.requires_grad
    sources, depends_on_more = [], False
    pending: list[Any] = [tensor.grad_fn]
    seen = set(pending)
    while pending:
        node = pending.pop()
        if hasattr(node, "source_call"):
            sources.append(node)
            continue
        # Activations may have learned scalars.
        depends_on_more |= hasattr(node, "variable") and node.variable.numel() > 1
        earlier = {before for before, _ in node.next_functions if before is not None} - seen
        seen |= earlier
        pending += earlier
    return sources, depends_on_more


def _find_layouts(inputs: Tensor, nodes: list[Any]) -> list[UpLayout | None]:
    """Return the layout of the rows of each up projection, from the gradients of a few neurons; None without one."""
    width = inputs.shape[-1]
    strongest = inputs.detach().abs().reshape(-1, width).amax(0).topk(2).indices.tolist()
    rows_of_neurons: list[dict[int, set[int]]] = [{} for _ in nodes]
    for neuron in sorted({0, width // 2, width - 1, *strongest}):
        for rows, gradient in zip(rows_of_neurons, _gradients(inputs[..., neuron], nodes), strict=True):
            is_used = gradient.reshape(-1, gradient.shape[-1]).ne(0).any(0)
            rows[neuron] = set(is_used.nonzero().flatten().tolist())
    return [
        _layout_of(rows, width, is_fused=num_outputs(node.source_call.module) == 2 * width)
        for rows, node in zip(rows_of_neurons, nodes, strict=True)
    ]


def _layout_of(rows: Mapping[int, set[int]], width: int, *, is_fused: bool) -> UpLayout | None:
    """Return the layout in which each neuron depends on its own rows only, and at least one neuron on all of them.

    Example:
        >>> _layout_of({0: {0, 8}, 3: set()}, width=8, is_fused=True)
        'halves'
    """
    layouts: dict[UpLayout, dict[int, set[int]]] = {"plain": {neuron: {neuron} for neuron in rows}}
    if is_fused:
        layouts = {
            "halves": {neuron: {neuron, width + neuron} for neuron in rows},
            "pairs": {neuron: {2 * neuron, 2 * neuron + 1} for neuron in rows},
        }
    for layout, own in layouts.items():
        if all(rows[neuron] <= own[neuron] for neuron in rows) and any(rows[neuron] == own[neuron] for neuron in rows):
            return layout
    return None


def _keeps_positions(inputs: Tensor, nodes: list[Any]) -> bool:
    """Return whether the first and the last position depend on themselves only; in causal attention, the first does."""
    positions = inputs.reshape(-1, inputs.shape[-1])
    for position in (0, len(positions) - 1):
        for gradient in _gradients(positions[position], nodes):
            is_used = gradient.reshape(len(positions), -1).ne(0).any(1)
            is_used[position] = False
            if is_used.any():
                return False
    return True


def _gradients(tensor: Tensor, nodes: list[Any]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(tensor.sum(), [GradientEdge(node, 0) for node in nodes], retain_graph=True)


@contextmanager
def _requiring_gradients(model: nn.Module) -> Iterator[None]:
    """Make all parameters, frozen ones too, part of the graph inside a ``with`` block."""
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_()
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
