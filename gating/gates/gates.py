"""The gates of a model as one vector, and their values."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from gating.discovery.ungated import UngatedModules
from gating.errors import OperationError
from gating.gates import hard_concrete
from gating.gates.attachment import Attachment
from gating.gates.counts import GatedUnits, table_of
from gating.gates.hard_concrete import GateSampler
from gating.gates.pass_values import PassValues
from gating.structure.blocks import Block
from gating.structure.hooks import Handle
from gating.structure.layers import iter_blocks
from gating.units import UNITS, UnitName

# Numbers of the searches of this process, so that an objective recognizes the gates of its own.
_search_numbers = count(1)


class HeadGates(GatedUnits):
    """The gates of all heads of a model, and of its feed-forward neurons if they are gated, in one vector.

    A gate stands for one head, for a group of query heads that share keys and values, or for a group of neurons.
    Tensors with an entry for each gate have the shape ``[num_gates]``; without such groups that is the number of heads.

    Attributes:
        log_alpha: Parameter of shape ``[num_gates]``, float32: the location of each gate, block after block.
        units_per_gate: Number of units of each gate: of heads, or of neurons.
        counts: For each unit, its number in each gate; 0 for a gate of other units.
        parameters_per_gate: Number of parameters that removing each gate's units saves, ``[num_gates]``, float64
            on the CPU.
        macs_per_gate: Multiply-accumulates of each gate's units for one example, ``[num_gates]``, float64 on the CPU;
            of 128 tokens unless :meth:`set_macs` has been called.
        gate_sizes: Units, features and parameters of each gate.
        units: Names of the gated units: ``heads``, ``neurons``, or both.
        group_size: Number of neurons of a gate; None without gates of neurons.
        block_names, block_sizes, block_units: Name, number of gates and unit of each block.
        block_kinds, block_towers: Its kind (:attr:`AttentionBlock.kind`) or ``feed_forward``, and tower, as ``vision``.
        block_groups: Its group in reports: the tower, or the kind in a model of one kind of input.
        ungated: Modules that look like blocks of these units, have no gates and were not left out, with the reasons.
        constraint: Optional module that maps ``log_alpha`` to the locations used; the exact budget is one.
        sampler: Optional module that makes the values from the locations, in place of the hard-concrete distribution.
        search_number: Number of the search that :meth:`follow` has begun, unique in this process.
        pass_values: The values of the present forward pass.
        attachment: The hooks in the model; None while the gates are not attached.

    Example:
        >>> from gating import inject_gates
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> inject_gates(model)
        HeadGates(8 heads in 2 attention blocks)
    """

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
        hard_concrete.check_distribution(temperature, stretch_limits)
        start = hard_concrete.log_alpha_for(init_prob_open, temperature=temperature, stretch_limits=stretch_limits)
        super().__init__(blocks, group_queries=group_queries)
        self.temperature = temperature
        self.stretch_limits = stretch_limits
        self.init_prob_open = init_prob_open
        self.ungated: tuple[UngatedModules, ...] = ()
        device = next(blocks[0].module.parameters()).device
        self.log_alpha = nn.Parameter(torch.full((len(self.gate_sizes),), start, device=device))
        for unit, counts in self.counts.items():
            self.register_buffer(f"_num_{unit}", torch.tensor(counts, device=device), persistent=False)
        features = [size.num_features for size in self.gate_sizes]
        self._features_of_each = features[0] if len(set(features)) == 1 else None
        self._total_features = sum(features)
        self.register_buffer("_num_features", torch.tensor(features, device=device), persistent=False)
        self.constraint: nn.Module | None = None
        self.sampler: GateSampler | None = None
        # A tuple keeps the objective from being a submodule of the gates.
        self._followed: tuple[Any] = (None,)
        self.search_number = next(_search_numbers)
        self._fixed: Tensor | None = None
        self.pass_values = PassValues(self, [sum(block.slot_widths) for block in blocks])
        self.attachment: Attachment | None = None

    @property
    def objective(self) -> Any:
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

    def count_open(self, unit: UnitName) -> int:
        """Count the units whose gate's deterministic value is not zero."""
        return int(((self.values() > 0) * self.get_buffer(f"_num_{unit}")).sum())

    def count_expected(self, unit: UnitName) -> Tensor:
        """Return the expected number of open units, a scalar; differentiable."""
        return (self.prob_open() * self.get_buffer(f"_num_{unit}")).sum()

    def num_open(self) -> int:
        """Count the heads whose gate's deterministic value is not zero."""
        return self.count_open("heads")

    def expected_open(self) -> Tensor:
        """Return the expected number of open heads, a scalar; differentiable."""
        return self.count_expected("heads")

    def open_by_block(self) -> dict[str, int]:
        """Count the units of each block whose gate's deterministic value is not zero, by its name."""
        sizes = torch.tensor(self.units_per_gate, device=self.log_alpha.device)
        counts = ((self.values() > 0) * sizes).split(self.block_sizes)
        return {name: int(count.sum()) for name, count in zip(self.block_names, counts, strict=True)}

    def by_block(self) -> dict[str, Tensor]:
        """Return the deterministic values of each block by its name."""
        return dict(zip(self.block_names, self.values().detach().split(self.block_sizes), strict=True))

    def feature_scales(self) -> Tensor:
        """Return the factor of each feature of all blocks: a sample in training mode, else the values."""
        values = self.sample() if self.training and not self.is_fixed else self.values()
        if self._features_of_each is None:
            return values.repeat_interleave(self._num_features, output_size=self._total_features)
        return values.unsqueeze(1).expand(-1, self._features_of_each).reshape(-1)

    def follow(self, objective: Any) -> int:
        """Give these gates to an objective, without the settings of an earlier one; trained locations stay.

        Objectives call this in ``attach``.

        Returns:
            The number of the search.
        """
        if self.objective is not None:
            self.constraint = self.sampler = None
            self.log_alpha.requires_grad_(True)
            self.renew_values()
        self._followed = (objective,)
        self.search_number = next(_search_numbers)
        return self.search_number

    @contextmanager
    def fixed_at(self, values: Tensor) -> Iterator[None]:
        """Use given gate values, ``[num_gates]``, in training and evaluation, inside of a ``with`` block.

        With zeros and ones this is a head mask.
        """
        before = self._fixed
        self._fixed = values.to(self.log_alpha.device)
        self.renew_values()
        try:
            yield
        finally:
            self._fixed = before
            self.renew_values()

    def renew_values(self) -> None:
        """Make new values when they are needed next; to call after a change of anything but ``log_alpha``."""
        self.pass_values.invalidate()

    def attach(self, model: nn.Module, blocks: Sequence[Block]) -> None:
        """Put the gates into a model, in place: hooks on every output projection and on the model."""
        self.attachment = Attachment(model, self, self.pass_values, blocks)

    @contextmanager
    def detached(self) -> Iterator[nn.Module]:
        """Take the gates out of their model, which is the value, inside of a ``with`` block.

        Hooks of :meth:`keep_until_removed` do not come back.
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
        blocks = {block.name: block for block in iter_blocks(model, *self.units, group_size=self.group_size)}
        return [blocks[name] for name in self.block_names]

    def keep_until_removed(self, handle: Handle) -> None:
        """Keep a hook of the model until :meth:`remove` is called, which removes it, too."""
        self._present_attachment().handles.append(handle)

    def remove(self) -> None:
        """Remove gates and hooks from the model, in place. Gate values are lost, not folded."""
        if self.attachment is not None:
            self.attachment.remove()
        self.attachment = None
        self.renew_values()

    @torch.no_grad()
    def summary(self) -> str:
        """Return a table of the gates: open units of each block and in all, and the parameters they stand for.

        A unit is open if the deterministic value of its gate is not zero; ``expected`` is the number of open units over
        the noise of the gates.

        Example:
            >>> from gating import inject_gates
            >>> from transformers import BertConfig, BertModel
            >>> config = BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=1, vocab_size=10)
            >>> gates = inject_gates(BertModel(config))
            >>> _ = gates.log_alpha.data.copy_(torch.tensor([9.0, -9, -9, 9]))
            >>> print(gates.summary())
            block                           kind     gates          open  expected  parameters
            encoder.layer.0.attention.self  encoder      4  2 of 4 heads      2.00  140 of 280
            all heads                                    4  2 of 4 heads      2.00  140 of 280
            Without its closed units, the model has about 56,692 of 56,832 parameters (99.8 %).
        """
        is_open = self.values() > 0
        lines = table_of(self, is_open, self.prob_open())
        if self.attachment is not None:
            # The gates are parameters of the model.
            num_all = sum(weight.numel() for weight in self.attachment.model.parameters()) - self.log_alpha.numel()
            closed = ~is_open.cpu() | (torch.tensor(self.units_per_gate, device="cpu") == 0)
            left = num_all - int(self.parameters_per_gate[closed].sum())
            share = f"about {left:,} of {num_all:,} parameters ({left / num_all:.1%}".replace("%", " %")
            lines.append(f"Without its closed units, the model has {share}).")
        return "\n".join(lines)

    def extra_repr(self) -> str:
        """Show the number of units with a gate."""
        parts = []
        for unit in self.units:
            num_blocks, num_gates = self.block_units.count(unit), self.unit_of_gate.count(unit)
            units = f"{self.total(unit)} {unit} in {num_blocks} {UNITS[unit].label} blocks"
            parts.append(units if num_gates == self.total(unit) else f"{num_gates} gates for {units}")
        return ", ".join(parts)

    def _present_attachment(self) -> Attachment:
        if self.attachment is None:
            raise OperationError("These gates are not attached to a model: they have been removed, or never injected.")
        return self.attachment
