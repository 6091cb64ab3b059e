"""The proof of a removal: edits are applied, and undone unless the model computes the outputs of the masked one."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from gating.errors import InputError, LayoutError
from gating.proof.outputs import (
    OUT_OF_MEMORY,
    cached_outputs,
    forward_outputs,
    max_relative_difference,
    rounding_of,
    rounding_tolerance,
)
from gating.proof.probe import run_probe
from gating.structure.blocks import Block
from gating.structure.edits import Edit, Undo, apply_edits, undo_edits

# A `with` block in which the features of each block are multiplied by the factors of its gates or units.
Masking = Callable[[Sequence[Tensor]], AbstractContextManager[object]]


@dataclass(frozen=True)
class ExpectedOutputs:
    """Outputs of a model for one batch, which those of another model have to equal.

    ``tolerance`` is the largest relative difference that rounding explains. Blocks are ``unproven`` whose features have
    no effect on these outputs beyond rounding: the batch does not reach them, or what they compute goes nowhere.
    ``has_cache`` says whether a step with a cache agrees with the forward pass without one.
    """

    probe: Mapping[str, Tensor]
    outputs: list[Tensor]
    tolerance: float
    unproven: frozenset[str] = frozenset()
    has_cache: bool = False

    @classmethod
    def of(cls, model: nn.Module, probe: Mapping[str, Tensor] | None = None, *, tolerance: float) -> "ExpectedOutputs":
        """Record the outputs of a model for a batch; one is made for it if none is given."""
        probe, outputs = run_probe(model, probe)
        return cls(probe, outputs, tolerance)

    def difference(self, model: nn.Module) -> float:
        """Return the largest relative difference of the outputs of another model."""
        return max_relative_difference(self.outputs, forward_outputs(model, self.probe))

    def find_problem(self, model: nn.Module, difference: float) -> str | None:
        """Return how another model with this difference differs, if by more than rounding, or None."""
        if not difference <= self.tolerance:
            return f"outputs differ by {difference:.1e}, more than the rounding error of {self.tolerance:.1e}"
        return find_problem_with_cache(model, self.probe, self.tolerance) if self.has_cache else None


class MaskedOutputs:
    """Outputs of a model with masked units, which the model without these units has to give.

    ``passes`` are for a batch and, if that leaves blocks unproven, for one that is made for the model.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[Block],
        factors: Sequence[Tensor],
        *,
        masked: Masking | None = None,
        probe: Mapping[str, Tensor] | None = None,
        largest: Callable[[float], float] = float,
        free: Callable[[nn.Module], object] | None = None,
    ) -> None:
        """Record the outputs of a masked model, which stays as it is.

        The ``factors`` are those of each gate or unit of each block; ``masked`` multiplies the features by them in a
        ``with`` block, by default with hooks. ``largest`` returns the largest of the numbers of all processes, which
        then decide alike. ``free`` frees what a pass of a sharded model has gathered. Steps with a cache are not
        compared then: a pass that fails may leave FSDP2 unusable. A NaN, or a model that does not run, is an
        ``InputError``.
        """
        self.blocks = blocks
        self._factors, self._largest, self._free = factors, largest, free
        self._masked = masked or partial(features_scaled, blocks)
        self.passes = [self._record(model, probe)]
        if probe is not None and self.unproven:
            # A batch of texts alone does not reach the vision tower.
            with suppress(InputError):
                own = self._record(model, None)
                self.passes += [own] if self.passes[0].unproven - own.unproven else []

    @property
    def unproven(self) -> tuple[str, ...]:
        """Names of the blocks that none of the outputs depends on, in the order of the blocks."""
        return tuple(block.name for block in self.blocks if all(block.name in one.unproven for one in self.passes))

    def compare(self, model: nn.Module) -> tuple[float, str | None]:
        """Return the largest difference of a model without the units, and how it differs beyond rounding, or None."""
        largest = 0.0
        for expected in self.passes:
            difference = self._largest(expected.difference(model))
            self._release(model)
            if problem := expected.find_problem(model, difference):
                return difference, problem
            largest = max(largest, difference)
        return largest, None

    def _release(self, model: nn.Module) -> None:
        if self._free is not None:
            self._free(model)

    def _record(self, model: nn.Module, probe: Mapping[str, Tensor] | None) -> ExpectedOutputs:
        """Record the outputs for one batch; a second pass with lower factors estimates the rounding error."""
        with self._masked(self._factors):
            probe, outputs = run_probe(model, probe)
        self._release(model)
        if any(tensor.isnan().any() for tensor in (*self._factors, *outputs)):
            raise InputError(
                "The model or its gates give NaN: training has diverged. Lower the learning rate, or train in float32."
            )
        run = partial(self._run, model, probe)
        with torch.no_grad():
            perturbed = run([factor * (1 - rounding_of(outputs)) for factor in self._factors])
        tolerance = self._largest(rounding_tolerance(outputs, perturbed))
        unproven = frozenset(self._without_effect(run, outputs, tolerance))
        has_cache = False
        if self._free is None:
            with self._masked(self._factors):
                has_cache = find_problem_with_cache(model, probe, tolerance) is None
        return ExpectedOutputs(probe, outputs, tolerance, unproven, has_cache)

    def _run(self, model: nn.Module, probe: Mapping[str, Tensor], factors: Sequence[Tensor]) -> list[Tensor]:
        """Return the outputs with other factors, with a graph where gradients are enabled."""
        with self._masked(factors):
            outputs = forward_outputs(model, probe, with_gradients=torch.is_grad_enabled())
        self._release(model)
        return outputs

    def _without_effect(
        self, run: Callable[[Sequence[Tensor]], list[Tensor]], outputs: list[Tensor], tolerance: float
    ) -> Iterator[str]:
        """Yield the names of the blocks that lose units, and whose features do not change the outputs."""
        # Kept and removed units are exchanged, unless an estimate shows already that this changes the outputs.
        exchanged = [(factor == 0).to(factor) for factor in self._factors]
        estimates = _estimate_changes(run, self._factors, exchanged, outputs)
        for index, other in enumerate(exchanged):
            if not other.any() or self._largest(estimates[index]) > tolerance:
                continue
            changed = [*self._factors[:index], other, *self._factors[index + 1 :]]
            with torch.no_grad():
                difference = max_relative_difference(outputs, run(changed))
            if self._largest(difference) <= tolerance:
                yield self.blocks[index].name


def _estimate_changes(
    run: Callable[[Sequence[Tensor]], list[Tensor]],
    factors: Sequence[Tensor],
    exchanged: Sequence[Tensor],
    outputs: list[Tensor],
) -> list[float]:
    """Estimate to first order how much exchanging the units of each block would change the outputs.

    It is about the root mean square of the change, relative to the largest output; zero where there is no gradient.
    """
    leaves = [factor.detach().clone().requires_grad_() for factor in factors]
    try:
        with torch.enable_grad():
            terms = [_projected(output, largest) for output, largest in zip(run(leaves), outputs, strict=True)]
            gradients = torch.autograd.grad(torch.stack(terms).sum(), leaves, allow_unused=True)
    except OUT_OF_MEMORY:
        raise
    except Exception:  # Some kernels have no gradient, and some models run a tower without.
        return [0.0] * len(factors)
    return [
        0.0 if gradient is None else float((gradient * (other - factor)).nan_to_num(0.0, 0.0, 0.0).abs().sum())
        for gradient, other, factor in zip(gradients, exchanged, factors, strict=True)
    ]


def _projected(output: Tensor, expected: Tensor) -> Tensor:
    """Return a sum of outputs with weights that are as good as random, in which no changes cancel: a scalar."""
    finite = torch.where(output.isfinite(), output, 0.0).float().flatten()
    largest = torch.where(expected.isfinite(), expected, 0.0).abs().amax() if expected.numel() else torch.tensor(1.0)
    weights = torch.cos(12.9898 * torch.arange(len(finite), device=finite.device, dtype=torch.float32))
    scaled: Tensor = (finite * weights).sum().cpu() / ((float(largest) + 1e-30) * max(1, len(finite)) ** 0.5)
    return scaled


def find_problem_with_cache(model: nn.Module, probe: Mapping[str, Tensor], tolerance: float) -> str | None:
    """Return how a step with a cache differs from the forward pass without one, or None."""
    try:
        pair = cached_outputs(model, probe)
    except OUT_OF_MEMORY:
        raise
    except Exception as error:
        return f"with a cache, it does not run ({type(error).__name__}: {error})"
    difference = max_relative_difference([pair[0]], [pair[1]]) if pair is not None else 0.0
    if difference <= 10 * tolerance:
        return None
    return f"with a cache, the next token's outputs differ by {difference:.1e}"


def factors_of(blocks: Sequence[Block], kept: Mapping[str, Collection[int]]) -> list[Tensor]:
    """Return the factor of each slot of each block: 1 for kept units, else 0."""
    return [torch.tensor([float(unit in kept[block.name]) for unit in block.slot_ids]) for block in blocks]


@contextmanager
def features_scaled(blocks: Sequence[Block], factors: Sequence[Tensor]) -> Iterator[None]:
    """Multiply the features of each slot of each block by its factor, ``[num_slots]``, inside a ``with`` block."""
    handles = []
    for block, factor in zip(blocks, factors, strict=True):
        if block.slot_ids:
            by_feature = factor.repeat_interleave(torch.tensor(block.slot_widths))
            handles.append(block.hook_features(partial(_scale, by_feature)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _scale(factors: Tensor, features: Tensor) -> Tensor:
    return features * factors.to(features)


def apply_proven(model: nn.Module, edits: Sequence[Edit], masked: MaskedOutputs) -> tuple[list[Undo], float]:
    """Apply the edits of a removal, in place, and undo them unless the outputs equal those recorded with masked units.

    Return the functions that undo them, and the largest relative difference of outputs. On a ``LayoutError``, because
    the outputs differ or the model does not run any more, it is bit for bit as before.
    """
    done = apply_edits(edits)
    try:
        return done, check_proven(model, masked)
    except BaseException:
        undo_edits(done)
        raise


def check_proven(model: nn.Module, masked: MaskedOutputs) -> float:
    """Return the difference between the outputs of a model after a removal and those of the masked one.

    More than rounding, or a model that does not run, is a ``LayoutError``.
    """
    try:
        difference, problem = masked.compare(model)
    except OUT_OF_MEMORY:
        raise
    except Exception as error:
        raise _wrong_layout(model, masked.blocks, f"it does not run ({type(error).__name__}: {error})") from error
    if problem is not None:
        raise _wrong_layout(model, masked.blocks, problem)
    return difference


def try_removal(
    model: nn.Module,
    blocks: Sequence[Block],
    kept: Mapping[str, Collection[int]],
    *,
    probe: Mapping[str, Tensor] | None = None,
    must_matter: bool = True,
) -> None:
    """Apply a removal, if it changes anything, compare the outputs with those of masked units, and undo it.

    ``kept`` has the numbers of the units to keep by the names of the blocks. With ``must_matter``, it is an error if
    the outputs depend on none of the blocks, as it is if they differ.
    """
    edits = [edit for block in blocks for edit in block.plan_removal(kept[block.name])]
    if not edits:
        return
    masked = MaskedOutputs(model, blocks, factors_of(blocks, kept), probe=probe)
    losing = [block.name for block in blocks if not set(block.slot_ids) <= set(kept[block.name])]
    if must_matter and losing and set(losing) <= set(masked.unproven):
        raise InputError(
            f"the outputs for this batch do not depend on {losing[0]}, so nothing is proven: pass probe={{argument "
            "name: tensor, ...}, one batch that reaches it."
        )
    undo_edits(apply_proven(model, edits, masked)[0])


def _wrong_layout(model: nn.Module, blocks: Sequence[Block], problem: str) -> LayoutError:
    """Return the error for a layout that is not that of its class, which says where the layout is from."""
    units, *others = sorted({block.unit for block in blocks})
    units = "units" if others else units
    guessed = {type(block.module).__name__ for block in blocks if block.is_guessed}
    classes = ", ".join(sorted(guessed or {type(block.module).__name__ for block in blocks}))
    start = "The layout that discovery guessed is wrong: without" if guessed else "Without"
    row = "" if guessed else "The layout is another one than that of its row in the registry. "
    return LayoutError(
        f"{start} its removed {units}, {type(model).__name__} differs from the model with these {units} masked: "
        f"{problem}. {row}If they are independent of each other, describe the layout of {classes} with "
        "gating.register_attention_spec or gating.register_feed_forward_spec. Nothing was changed."
    )
