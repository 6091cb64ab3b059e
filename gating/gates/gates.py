"""The gates of a model as one vector, and their values."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count

import torch
from torch import Tensor, nn

from gating.discovery.find import check_units, find_blocks
from gating.discovery.ungated import UngatedModules
from gating.errors import InputError, OperationError
from gating.gates import hard_concrete
from gating.gates.attachment import Attachment
from gating.gates.counts import GateCounts
from gating.gates.draw import Draw
from gating.gates.sampler import GateChoice, GateSampler
from gating.gates.sizes import gate_sizes
from gating.structure.blocks import AttentionBlock, group_labels
from gating.structure.edits import Handle
from gating.structure.feed_forward import Block, FeedForwardBlock

__all__ = ["HeadGates"]

# Numbers of the searches of this process, so that an objective recognizes the gates of its own.
_search_numbers = count(1)


class HeadGates(GateCounts):
    """The gates of all heads of a model, and of its feed-forward neurons if they are gated, in one vector.

    A gate stands for one head, for a group of query heads that share keys and values, or for a group of neurons.
    Tensors with an entry for each gate have the shape ``[num_gates]``; without such groups that is the number of heads.

    Attributes:
        log_alpha: Parameter of shape ``[num_gates]``, float32: the location of each gate, block after block.
        heads_per_gate: Number of heads of each gate; 0 for a gate of neurons.
        neurons_per_gate: Number of neurons of each gate; 0 for a gate of heads.
        parameters_per_gate: Number of parameters that removing each gate's units saves, ``[num_gates]``, float64
            on the CPU.
        macs_per_gate: Multiply-accumulates of each gate's units for one example, ``[num_gates]``, float64 on the CPU;
            of 128 tokens unless :meth:`set_macs` has been called.
        gate_sizes: Units, features and parameters of each gate.
        units: Kinds of gated units: ``heads``, ``neurons``, or both.
        group_size: Number of neurons of a gate; None without gates of neurons.
        block_names: Names of the gated attention and feed-forward blocks.
        block_sizes: Number of gates of each block.
        block_kinds: Kind of attention of each block (:attr:`AttentionBlock.kind`), or ``feed_forward``.
        block_towers: Tower of each block, such as ``language`` or ``vision``.
        block_groups: Group of each block in reports: its tower, or its kind in a model of one kind of input.
        ungated: Modules that look like blocks of these units, have no gates and were not left out, with the reasons.
        constraint: Optional module that maps ``log_alpha`` to the locations used; the exact budget is one.
        sampler: Optional module that makes the values from the locations, in place of the hard-concrete distribution.
        search_number: Number of the search that :meth:`follow` has begun, unique in this process.
        draw: The values of the present forward pass.
        attachment: The hooks in the model; None while the gates are not attached.

    Example:
        >>> from gating import inject_gates
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> inject_gates(model)
        HeadGates(8 heads in 2 attention blocks)
    """

    parameters_per_gate: Tensor
    macs_per_gate: Tensor
    _num_features: Tensor

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        temperature: float = hard_concrete.DEFAULT_TEMPERATURE,
        stretch_limits: tuple[float, float] = hard_concrete.DEFAULT_STRETCH_LIMITS,
        init_prob_open: float = 0.98,
        group_queries: bool = True,
    ) -> None:
        """Create gates for blocks; the arguments are those of :func:`~gating.gates.inject_gates`."""
        super().__init__()
        hard_concrete.check_distribution(temperature, stretch_limits)
        self.temperature = temperature
        self.stretch_limits = stretch_limits
        self.init_prob_open = init_prob_open
        self.group_queries = group_queries
        self.block_names = [block.name for block in blocks]
        self.block_kinds = [block.kind for block in blocks]
        self.block_towers = [block.tower for block in blocks]
        self.block_groups = group_labels(blocks)
        self.ungated: tuple[UngatedModules, ...] = ()
        by_block = [gate_sizes(block, group_queries=group_queries) for block in blocks]
        self.block_sizes = [len(gates) for gates in by_block]
        self.gate_sizes = tuple(size for gates in by_block for size in gates)
        sizes = self.gate_sizes
        features = [size.num_features for size in sizes]
        self.heads_per_gate = tuple(size.num_heads for size in sizes)
        self.neurons_per_gate = tuple(size.num_neurons for size in sizes)
        self.units = check_units({"neurons" if isinstance(block, FeedForwardBlock) else "heads" for block in blocks})
        sizes_of_groups = {block.group_size for block in blocks if isinstance(block, FeedForwardBlock)}
        self.group_size = next(iter(sizes_of_groups), None)
        self._features_of_each = features[0] if len(set(features)) == 1 else None
        start = hard_concrete.log_alpha_for(init_prob_open, temperature=temperature, stretch_limits=stretch_limits)
        device = next(blocks[0].module.parameters()).device
        self.log_alpha = nn.Parameter(torch.full((len(sizes),), start, device=device))
        for name, counts in (
            ("_num_heads", self.heads_per_gate),
            ("_num_neurons", self.neurons_per_gate),
            ("_num_features", features),
        ):
            self.register_buffer(name, torch.tensor(counts, device=device), persistent=False)
        # On the CPU: some devices lack double precision.
        self.parameters_per_gate = torch.tensor(
            [size.num_parameters for size in sizes], dtype=torch.float64, device="cpu"
        )
        self.macs_per_gate = torch.tensor([size.macs() for size in sizes], dtype=torch.float64, device="cpu")
        self.constraint: nn.Module | None = None
        self.sampler: GateSampler | None = None
        # In a tuple: the objective is no submodule of the gates.
        self._followed: tuple[GateChoice | None] = (None,)
        self.search_number = next(_search_numbers)
        self._fixed: Tensor | None = None
        self._total_features = sum(features)
        self.draw = Draw(self, [sum(block.slot_widths) for block in blocks])
        self.attachment: Attachment | None = None

    @property
    def objective(self) -> GateChoice | None:
        """The objective that was attached last; None before."""
        return self._followed[0]

    @property
    def is_fixed(self) -> bool:
        """Whether the values are given, inside of :meth:`fixed_at`."""
        return self._fixed is not None

    def constrained_log_alpha(self) -> Tensor:
        """Return the locations that the distribution uses: ``log_alpha`` after the constraint, if there is one."""
        return self.log_alpha if self.constraint is None else self.constraint(self.log_alpha)

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

    def feature_scales(self) -> Tensor:
        """Return the factor of each feature of all blocks: a sample in training mode, else the values."""
        values = self.sample() if self.training and not self.is_fixed else self.values()
        if self._features_of_each is None:
            return values.repeat_interleave(self._num_features, output_size=self._total_features)
        return values.unsqueeze(1).expand(-1, self._features_of_each).reshape(-1)

    def set_macs(self, macs: Tensor) -> None:
        """Set the multiply-accumulates of each gate's units for one example, ``[num_gates]``.

        Raises:
            InputError: ``macs`` has another shape.
        """
        if macs.shape != self.log_alpha.shape:
            raise InputError(f"Expected {self.log_alpha.numel()} numbers, got a tensor of shape {tuple(macs.shape)}.")
        self.macs_per_gate = macs.double().cpu()

    def follow(self, objective: GateChoice | None) -> int:
        """Reset the state of an earlier objective for a new search; trained locations stay.

        Objectives call this in ``attach``.

        Returns:
            The number of the search.
        """
        if self.objective is not None:
            self.constraint = self.sampler = None
            self.log_alpha.requires_grad_(True)
            self.forget_draw()
        self._followed = (objective,)
        self.search_number = next(_search_numbers)
        return self.search_number

    @contextmanager
    def fixed_at(self, values: Tensor) -> Iterator[None]:
        """Use given gate values, ``[num_gates]``, in training and evaluation, inside of a ``with`` block.

        With zeros and ones this is a head mask.

        Raises:
            InputError: ``values`` has another shape.
        """
        if values.shape != self.log_alpha.shape:
            expected = self.log_alpha.numel()
            raise InputError(f"Expected {expected} gate values, got a tensor of shape {tuple(values.shape)}.")
        before = self._fixed
        self._fixed = values.to(self.log_alpha.device)
        self.forget_draw()
        try:
            yield
        finally:
            self._fixed = before
            self.forget_draw()

    def forget_draw(self) -> None:
        """Make a new draw when values are needed next; to call after a change of anything but ``log_alpha``."""
        self.draw.forget()

    def attach(self, model: nn.Module, blocks: Sequence[Block]) -> None:
        """Put the gates into a model, in place: hooks on every output projection and on the model."""
        self.attachment = Attachment(model, self)
        self.attachment.hook_passes(self.draw)
        self.attachment.hook_blocks(self.draw, blocks, self.block_sizes)

    @contextmanager
    def detached(self) -> Iterator[nn.Module]:
        """Take the gates out of their model, which is the value, inside of a ``with`` block.

        Hooks of :meth:`remove_with_gates` do not come back.
        """
        model, blocks = self._present_attachment().model, self.blocks()
        self.remove()
        try:
            yield model
        finally:
            self.attach(model, blocks)

    def attach_again(self) -> None:
        """Put the gates on the present output projections, in place, if merging adapters has replaced them."""
        attachment, blocks = self._present_attachment(), self.blocks()
        if attachment.projections != [block.output_projection for block in blocks]:
            self.remove()
            self.attach(attachment.model, blocks)

    def blocks(self, model: nn.Module | None = None) -> list[Block]:
        """Return the blocks of these gates, in the order of ``log_alpha``: in the model that has them, or in another.

        Raises:
            OperationError: No model is given, and the gates are not attached to one.
        """
        model = self._present_attachment().model if model is None else model
        blocks = {block.name: block for block in find_blocks(model, units=self.units, group_size=self.group_size)}
        return [blocks[name] for name in self.block_names]

    def attention_blocks(self) -> list[AttentionBlock]:
        """Return the attention blocks that have these gates; the errors are those of :meth:`blocks`."""
        return [block for block in self.blocks() if isinstance(block, AttentionBlock)]

    def remove_with_gates(self, handle: Handle) -> None:
        """Remove another hook, too, when :meth:`remove` is called."""
        self._present_attachment().other_handles.append(handle)

    def remove(self) -> None:
        """Remove gates and hooks from the model, in place. Gate values are lost, not folded."""
        if self.attachment is not None:
            self.attachment.remove()
        self.attachment = None
        self.forget_draw()

    def extra_repr(self) -> str:
        """Show the number of heads and neurons with a gate."""
        num_blocks = sum(kind != "feed_forward" for kind in self.block_kinds)
        num_gates = sum(self.block_sizes[:num_blocks])
        heads = f"{self.num_heads} heads in {num_blocks} attention blocks"
        parts = [heads if num_gates == self.num_heads else f"{num_gates} gates for {heads}"] if num_blocks else []
        if self.num_neurons:
            neurons = f"{self.num_neurons} neurons in {len(self.block_names) - num_blocks} feed-forward blocks"
            parts.append(f"{self.log_alpha.numel() - num_gates} gates for {neurons}")
        return ", ".join(parts)

    def _present_attachment(self) -> Attachment:
        if self.attachment is None:
            raise OperationError("These gates are not attached to a model: they have been removed, or never injected.")
        return self.attachment
