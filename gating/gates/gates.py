"""Hard-concrete gates on the attention heads of a model: inject, sample, read, remove."""

import difflib
import sys
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from gating.discovery.find import find_attention_blocks
from gating.errors import InputError, OperationError
from gating.gates import hard_concrete
from gating.gates.full_precision import FullPrecision
from gating.gates.sampler import GateSampler
from gating.structure.blocks import AttentionBlock

__all__ = ["HeadGates", "create_gates", "inject_gates"]

_CHILD_NAME = "head_gates"


def inject_gates(
    model: nn.Module,
    *,
    temperature: float = hard_concrete.DEFAULT_TEMPERATURE,
    stretch_limits: tuple[float, float] = hard_concrete.DEFAULT_STRETCH_LIMITS,
    init_prob_open: float = 0.98,
    exclude: Collection[str] = (),
    group_queries: bool = True,
    discover: bool = False,
    probe: Mapping[str, Tensor] | None = None,
) -> "HeadGates":
    """Put a gate on every attention head of a model, in place; where it has adapters, beside them.

    Each head's slice of the output projection's input is multiplied by its gate from then on. In training mode
    the gates are sampled once for each forward pass of the model; in evaluation mode they take their deterministic
    value. :meth:`HeadGates.remove` takes everything out again. With gradient checkpointing, ``backward()`` has to
    follow each forward pass: activations of an earlier one cannot be computed again, and that is an error.

    Args:
        model: The model to gate.
        temperature: ``beta`` of the hard-concrete distribution.
        stretch_limits: ``(gamma, zeta)`` of the hard-concrete distribution.
        init_prob_open: Probability that a gate is open at the start. Close to 1, so that a pre-trained model starts
            nearly as it was; not 1, or the penalty has no gradient.
        exclude: Names of attention blocks that get no gates.
        group_queries: Where groups of query heads share keys and values, whether a group gets one gate. It can always
            be removed whole. With a gate for each query head, groups that lose different numbers of heads are filled
            up with padding. A single group for all heads always gets a gate for each head: it needs no padding.
        discover: Whether to gate attention classes that the registry does not know, by their structure.
        probe: A batch as the model's keyword arguments to try them on; made from its configuration when left out.

    Returns:
        The gates, which are also a submodule of the model.

    Raises:
        ValueError: The model has no known attention block, has gates already, or an argument is out of range.
    """
    gates, blocks = _plan_gates(
        model,
        temperature=temperature,
        stretch_limits=stretch_limits,
        init_prob_open=init_prob_open,
        exclude=exclude,
        group_queries=group_queries,
        discover=discover,
        probe=probe,
    )
    gates.attach(model, blocks)
    return gates


def create_gates(model: nn.Module, **options: Any) -> "HeadGates":
    """Return the gates that :func:`inject_gates` would put on a model, and leave the model as it is.

    Args:
        model: A model, with or without weights.
        options: Keyword arguments of :func:`inject_gates`.

    Returns:
        Gates that are attached to nothing, for an objective's ``check``.

    Raises:
        ValueError: As for :func:`inject_gates`.
    """
    return _plan_gates(model, **options)[0]


def _plan_gates(
    model: nn.Module,
    *,
    temperature: float = hard_concrete.DEFAULT_TEMPERATURE,
    stretch_limits: tuple[float, float] = hard_concrete.DEFAULT_STRETCH_LIMITS,
    init_prob_open: float = 0.98,
    exclude: Collection[str] = (),
    group_queries: bool = True,
    discover: bool = False,
    probe: Mapping[str, Tensor] | None = None,
) -> tuple["HeadGates", list[AttentionBlock]]:
    if hasattr(model, _CHILD_NAME):
        raise InputError(f"{type(model).__name__} has gates already; call model.{_CHILD_NAME}.remove() first.")
    if not temperature > 0:
        raise InputError(f"The temperature of the gates must be positive, got {temperature}.")
    if not (len(stretch_limits) == 2 and stretch_limits[0] < 0 and stretch_limits[1] > 1):
        raise InputError(f"The stretch limits must be a number below 0 and one above 1, got {stretch_limits}.")
    _check_not_sequential(model)
    blocks = find_attention_blocks(model, discover=discover, probe=probe)
    unknown = set(exclude) - {block.name for block in blocks}
    if unknown:
        name = sorted(unknown)[0]
        nearest = difflib.get_close_matches(name, [block.name for block in blocks], n=1, cutoff=0.0)[0]
        raise InputError(f"There is no attention block {name!r} to exclude. Did you mean {nearest!r}?")
    blocks = [block for block in blocks if block.num_heads and block.name not in exclude]
    if not blocks:
        raise InputError(f"No attention head of {type(model).__name__} is left to put a gate on.")
    gates = HeadGates(
        blocks,
        temperature=temperature,
        stretch_limits=stretch_limits,
        init_prob_open=init_prob_open,
        group_queries=group_queries,
    )
    return gates, blocks


class HeadGates(FullPrecision):
    """The gates of all heads of a model, in one vector.

    A gate stands for one head, or for a group of query heads that share keys and values. Tensors with an entry for
    each gate have the shape ``[num_gates]``; without such groups that is the number of heads.

    Attributes:
        log_alpha: Parameter of shape ``[num_gates]``, float32: the location of each gate, block after block.
        heads_per_gate: How many heads each gate stands for.
        block_names: Names of the gated attention blocks.
        block_sizes: Number of gates of each block.
        block_kinds: For each block, which part of the model's attention it is (:attr:`AttentionBlock.kind`).
        constraint: Optional module that maps ``log_alpha`` to the locations used; the exact budget is one.
        sampler: Optional module that makes the values from the locations, in place of the hard-concrete distribution.
    """

    log_alpha: nn.Parameter
    _heads: Tensor
    _features_per_gate: Tensor

    def __init__(
        self,
        blocks: Sequence[AttentionBlock],
        *,
        temperature: float = hard_concrete.DEFAULT_TEMPERATURE,
        stretch_limits: tuple[float, float] = hard_concrete.DEFAULT_STRETCH_LIMITS,
        init_prob_open: float = 0.98,
        group_queries: bool = True,
    ) -> None:
        """Create gates for attention blocks; :func:`inject_gates` also puts them to work."""
        super().__init__()
        self.temperature = temperature
        self.stretch_limits = stretch_limits
        self.block_names = [block.name for block in blocks]
        self.block_kinds = [block.kind for block in blocks]
        units = [_gate_units(block, group_queries=group_queries) for block in blocks]
        self.block_sizes = [len(block_units) for block_units in units]
        start = hard_concrete.log_alpha_for(init_prob_open, temperature=temperature, stretch_limits=stretch_limits)
        device = next(blocks[0].module.parameters()).device
        self.log_alpha = nn.Parameter(torch.full((sum(self.block_sizes),), start, device=device))
        self.constraint: nn.Module | None = None
        self.sampler: GateSampler | None = None
        heads = [len(set(unit) & set(block.head_ids)) for block, its in zip(blocks, units, strict=True) for unit in its]
        features = [len(unit) * block.head_dim for block, its in zip(blocks, units, strict=True) for unit in its]
        self.heads_per_gate = tuple(heads)
        self.register_buffer("_heads", torch.tensor(heads, device=device), persistent=False)
        self.register_buffer("_features_per_gate", torch.tensor(features, device=device), persistent=False)
        self._even = features[0] if len(set(features)) == 1 else None
        self._widths = [len(block.head_slots) * block.head_dim for block in blocks]
        self._fixed: Tensor | None = None
        # What every feature of this pass is multiplied by, and its parts for each block in the precisions asked for.
        self._drawn: Tensor | None = None
        self._scales: dict[tuple[torch.dtype, bool], tuple[Tensor, ...]] = {}
        # Parts of a model may be called without the whole; this tells whether the values are still good.
        self._drawn_in: tuple[bool, int] | None = None
        # Of draws for parts that are called alone: where the random numbers were, and how often they have been there.
        self._late = (-1, 0)
        self._use: _Use | None = None
        self._earlier: list[weakref.ref[_Use]] = []
        # Whether the whole model has drawn for the pass of its base model that is to come.
        self._announced = False
        # Whether the pass under way began with gradients; None where parts of the model are called without the whole.
        self._pass_learns: bool | None = None
        self._attached: list[tuple[nn.Module, str]] = []
        self._handles: list[RemovableHandle] = []

    @property
    def num_heads(self) -> int:
        """Number of gated heads."""
        return sum(self.heads_per_gate)

    def sample(self) -> Tensor:
        """Draw a value for every gate, ``[num_gates]``; differentiable."""
        locations = self.constrained_log_alpha()
        if self.sampler is not None:
            return self.sampler.sample(locations)
        return hard_concrete.sample(locations, temperature=self.temperature, stretch_limits=self.stretch_limits)

    def values(self) -> Tensor:
        """Return the deterministic value of every gate, ``[num_gates]``: 0 is closed, 1 fully open."""
        if self._fixed is not None:
            return self._fixed
        locations = self.constrained_log_alpha()
        if self.sampler is not None:
            return self.sampler.values(locations)
        return hard_concrete.deterministic(locations, stretch_limits=self.stretch_limits)

    def prob_open(self) -> Tensor:
        """Return for every gate the probability that it is not zero, ``[num_gates]``; differentiable."""
        locations = self.constrained_log_alpha()
        if self.sampler is not None:
            return self.sampler.prob_open(locations)
        return hard_concrete.prob_open(locations, temperature=self.temperature, stretch_limits=self.stretch_limits)

    def num_open(self) -> int:
        """Count the heads whose gate's deterministic value is not zero."""
        return sum(self.open_by_block().values())

    def open_by_block(self) -> dict[str, int]:
        """Count the heads of each attention block whose gate's deterministic value is not zero, by its name."""
        counts = ((self.values() > 0) * self._heads).split(self.block_sizes)
        return {name: int(count.sum()) for name, count in zip(self.block_names, counts, strict=True)}

    def expected_open(self) -> Tensor:
        """Return how many heads are open on average, a scalar; differentiable."""
        return (self.prob_open() * self._heads).sum()

    def by_block(self) -> dict[str, Tensor]:
        """Return the deterministic values of each attention block by its name."""
        return dict(zip(self.block_names, self.values().detach().split(self.block_sizes), strict=True))

    def constrained_log_alpha(self) -> Tensor:
        """Return the locations that the distribution uses: ``log_alpha`` after the constraint, if there is one."""
        return self.log_alpha if self.constraint is None else self.constraint(self.log_alpha)

    @contextmanager
    def fixed_at(self, values: Tensor) -> Iterator[None]:
        """Use given gate values, ``[num_gates]``, in training and evaluation, for the length of a ``with`` block.

        With zeros and ones this is a head mask.
        """
        if values.shape != self.log_alpha.shape:
            raise InputError(
                f"Expected {self.log_alpha.numel()} gate values, got a tensor of shape {tuple(values.shape)}."
            )
        before = self._fixed
        self._fixed = values.to(self.log_alpha.device)
        self.forget_draw()
        try:
            yield
        finally:
            self._fixed = before
            self.forget_draw()

    def attach(self, model: nn.Module, blocks: Sequence[AttentionBlock]) -> None:
        """Put the gates to work in a model, in place: a pre-hook on every output projection and one on the model."""
        model.add_module(_CHILD_NAME, self)
        self._attached = [(model, _CHILD_NAME)]
        # Of the model without its task head, too, so that it may also be called alone. Of the whole model, since some
        # with a task head call a part of that one only.
        base = getattr(model, "base_model", model)
        self._handles = [
            base.register_forward_pre_hook(self._renew),
            base.register_forward_hook(self._pass_ended, always_call=True),
        ]
        if base is not model:
            self._handles.append(model.register_forward_pre_hook(self._announce))
            self._handles.append(model.register_forward_hook(self._pass_ended, always_call=True))
        for index, block in enumerate(blocks):
            gate = _BlockGate(self, index)
            projection = block.output_projection
            projection.add_module("gate", gate)
            self._attached.append((projection, "gate"))
            self._handles.append(projection.register_forward_pre_hook(gate))
            gate.train(model.training)
        self.train(model.training)

    def attention_blocks(self) -> list[AttentionBlock]:
        """Return the attention blocks that have these gates, as they are now, in the order of ``log_alpha``."""
        blocks = {block.name: block for block in find_attention_blocks(self._attached[0][0])}
        return [blocks[name] for name in self.block_names]

    def remove_with_gates(self, handle: RemovableHandle) -> None:
        """Let :meth:`remove` take out a hook of somebody else's, too."""
        self._handles.append(handle)

    def remove(self) -> None:
        """Take the gates out of the model, in place; nothing of them stays. Gate values are lost, not folded."""
        for handle in self._handles:
            handle.remove()
        for owner, name in self._attached:
            delattr(owner, name)
        self._handles, self._attached = [], []
        self.forget_draw()

    def attach_again(self) -> None:
        """Put the gates to work again, in place, if output projections have been replaced, as merging adapters does."""
        model, blocks = self._attached[0][0], self.attention_blocks()
        if [owner for owner, _ in self._attached[1:]] != [block.output_projection for block in blocks]:
            self.remove()
            self.attach(model, blocks)

    def scale(self, block_index: int, dtype: torch.dtype) -> Tensor:
        """Return what a block's ``[..., num_heads * head_dim]`` is multiplied by in this forward pass."""
        if not torch.compiler.is_compiling() and _is_in_backward():
            self._check_recomputation()
        elif self._is_stale():
            self._draw_late()
        assert self._drawn is not None
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._check_not_reentrant()
        # Some models run a part of themselves without gradients; the others are not to use its tensors.
        key = (dtype, torch.is_grad_enabled())
        if key not in self._scales:
            # One conversion for all blocks.
            self._scales[key] = self._drawn.to(dtype).split(self._widths)
        return self._scales[key][block_index]

    def forget_draw(self) -> None:
        """Draw anew when values are needed next: what they are made of, besides ``log_alpha``, has changed."""
        self._drawn, self._scales = None, {}
        self._retire_use()

    def _retire_use(self) -> None:
        """Remember the pass that the values were of, as long as its graph may still be run backwards."""
        if self._use is not None:
            self._earlier = [weakref.ref(self._use), *(use for use in self._earlier if use() is not None)]
        self._use = None

    def _check_recomputation(self) -> None:
        """Make sure that activations are computed again with the values of their own pass.

        Raises:
            RuntimeError: It cannot be known which pass they are of.
        """
        others = [use for use in (reference() for reference in self._earlier) if use is not None and not use.is_spent]
        if self._drawn is None or others:
            raise OperationError(
                "Gradient checkpointing computes activations again, and gates have been drawn since for another pass: "
                "call backward() after each forward pass, or disable gradient checkpointing."
            )

    def _check_not_reentrant(self) -> None:
        """Make sure that no part of a pass is inside of a reentrant checkpoint, whose backward ends at its own inputs.

        The gates are no input of it, so they would get no gradient, without a word. A whole pass may be inside: it
        draws them again as it is repeated backwards.

        Raises:
            RuntimeError: A part is.
        """
        context = None if self._pass_learns is False else _reentrant_context()
        # Gradients are off inside; whether they are on outside, of a part that is called alone, only its inputs tell.
        if context is None or not (self._pass_learns or context.next_functions):
            return
        with torch.enable_grad():
            learns = self.values().requires_grad
        if learns:
            raise OperationError(
                "Reentrant gradient checkpointing gives the gates no gradient: enable it with use_reentrant=False."
            )

    def _is_stale(self) -> bool:
        if self._drawn is None:
            return True
        if torch.compiler.is_compiling():
            # A compiled pass begins with _renew, and the version of a parameter is nothing to build into a graph.
            return False
        if self._use is not None and self._use.is_spent:
            return True
        learns = torch.is_grad_enabled() and self.log_alpha.requires_grad and self._fixed is None
        without_graph = learns and not self._drawn.requires_grad
        return without_graph or self._drawn_in != (self.training, self.log_alpha._version)

    def _draw_late(self) -> None:
        """Draw for a part of the model that is called alone, perhaps inside of a checkpoint.

        That one repeats the part and not the draw, so the draw leaves no trace in what it compares: the random numbers
        and the tensors saved for backward.
        """
        if torch.compiler.is_compiling():
            self._draw()
            return
        device = self.log_alpha.device
        unchanged = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
        with unchanged, _random_numbers_apart(device):
            place = int(torch.randint(2**62, (), device=device))
            self._late = (place, self._late[1] + 1 if place == self._late[0] else 0)
            _seed(device, sum(self._late))
            self._draw()

    def _draw(self) -> None:
        values = self.sample() if self.training and self._fixed is None else self.values()
        if self._even is None:
            self._drawn = values.repeat_interleave(self._features_per_gate, output_size=sum(self._widths))
        else:
            self._drawn = values.unsqueeze(1).expand(-1, self._even).reshape(-1)
        self._scales = {}
        if torch.compiler.is_compiling():
            return
        self._drawn_in = (self.training, self.log_alpha._version)
        self._retire_use()
        if self._drawn.requires_grad:
            self._use = _Use()
            self._drawn.register_hook(self._use)

    def extra_repr(self) -> str:
        """Show how many heads have a gate."""
        gates = "" if self.log_alpha.numel() == self.num_heads else f"{self.log_alpha.numel()} gates for "
        return f"{gates}{self.num_heads} heads in {len(self.block_names)} attention blocks"

    def _renew(self, *_: object) -> None:
        """Before each forward pass of the base model, draw new values for all gates, unless the whole model has.

        Here, not in the first layer that needs them: that may be inside of a checkpoint, which runs again backwards.
        """
        if not self._announced:
            self._begin_pass()
        self._announced = False

    def _announce(self, *_: object) -> None:
        """Before each forward pass of the whole model, draw new values for all gates."""
        self._begin_pass()
        self._announced = True

    def _begin_pass(self) -> None:
        self._draw()
        if not torch.compiler.is_compiling():
            self._pass_learns = torch.is_grad_enabled()

    def _pass_ended(self, *_: object) -> None:
        self._announced = False
        if not torch.compiler.is_compiling():
            self._pass_learns = None

    def __getstate__(self) -> dict[str, object]:
        """Leave this pass's values out of copies: they hang on the graph of the original."""
        return {**self.__dict__, "_drawn": None, "_scales": {}, "_use": None, "_earlier": []}


class _Use:
    """Tells whether gradients have come back to the values of a pass; it lives as long as their graph.

    After that, what is computed is of another pass: parts of a model may be called without the whole.
    """

    def __init__(self) -> None:
        self.is_spent = False

    def __call__(self, _: Tensor) -> None:
        self.is_spent = True


def _is_in_backward() -> bool:
    """Say whether gradients are being computed, in which checkpoints compute activations again."""
    is_in_backward: bool = torch._C._current_graph_task_id() != -1
    return is_in_backward


def _reentrant_context() -> Any:
    """Return the context of the reentrant checkpoint whose forward pass this is; None if it is of none."""
    frame = sys._getframe()
    while frame is not None and frame.f_code is not CheckpointFunction.forward.__code__:
        frame = frame.f_back  # type: ignore[assignment]
    return frame and frame.f_locals["ctx"]


def _random_numbers_apart(device: torch.device) -> AbstractContextManager[None]:
    """Let random numbers go on after a ``with`` block as if it had drawn none."""
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    devices = range(torch.get_device_module(device).device_count())
    return torch.random.fork_rng(devices, device_type=device.type)


def _seed(device: torch.device, seed: int) -> None:
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


class _BlockGate(nn.Module):
    """The gates of one attention block, as a pre-hook of its output projection.

    A module, not a closure: it is visible in ``print(model)``, and copying the model copies it with its gates.
    """

    gates: HeadGates

    def __init__(self, gates: HeadGates, index: int) -> None:
        super().__init__()
        # Not registered as a submodule: the gates belong to the model, once.
        object.__setattr__(self, "gates", gates)
        self.index = index

    def forward(self, projection: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        heads, *rest = inputs
        return (heads * self.gates.scale(self.index, heads.dtype), *rest)

    def extra_repr(self) -> str:
        start, size = sum(self.gates.block_sizes[: self.index]), self.gates.block_sizes[self.index]
        num_heads = sum(self.gates.heads_per_gate[start : start + size])
        return f"num_heads={num_heads}" if num_heads == size else f"num_heads={num_heads}, num_gates={size}"


def _check_not_sequential(model: nn.Module) -> None:
    """Raise ``ValueError`` for a container that would call the gates as one of its parts, as SentenceTransformer."""
    if isinstance(model, nn.Sequential):
        inside = [name for name, module in model.named_modules() if isinstance(module, PreTrainedModel)]
        where = f", model.get_submodule({inside[0]!r})" if inside else ""
        raise InputError(f"{type(model).__name__} calls its parts in order: put gates on one of them{where}.")


def _gate_units(block: AttentionBlock, *, group_queries: bool) -> list[tuple[int, ...]]:
    """Return the slots of a block, as original head numbers, that each of its gates multiplies."""
    slots, num_groups = block.head_slots, block.num_key_value_heads
    if len(slots) % num_groups:
        raise InputError(
            f"{block.name} has {len(slots)} query heads for {num_groups} key-value heads, which cannot be shared out "
            "evenly: correct num_attention_heads or num_key_value_heads in the model's configuration."
        )
    size = len(slots) // num_groups if group_queries and num_groups > 1 else 1
    return [slots[start : start + size] for start in range(0, len(slots), size)]
