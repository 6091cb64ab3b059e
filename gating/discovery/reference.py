"""Outputs of a masked model that those of the compact one are compared with, and the blocks for which they prove it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gating.discovery.probe import (
    forward_outputs,
    max_relative_difference,
    rounding_of,
    rounding_tolerance,
    run_probe,
)
from gating.structure.feed_forward import Block

__all__ = ["Masked", "Reference", "record_reference", "record_references", "unproven_by"]

# A `with` block in which the features of each block are multiplied by the factors of its gates or units.
Masked = Callable[[Sequence[Tensor]], AbstractContextManager[object]]


@dataclass(frozen=True)
class Reference:
    """The outputs of a masked model.

    Attributes:
        probe: The batch.
        outputs: The outputs.
        tolerance: Largest relative difference that rounding explains.
        unproven: Names of blocks that lose units, and whose features have no effect on these outputs beyond rounding:
            the batch does not reach them, or what they compute goes nowhere.
    """

    probe: Mapping[str, Tensor]
    outputs: list[Tensor]
    tolerance: float
    unproven: frozenset[str] = frozenset()


def record_references(
    model: nn.Module,
    blocks: Sequence[Block],
    factors: Sequence[Tensor],
    masked: Masked,
    probe: Mapping[str, Tensor] | None,
    *,
    after_pass: Callable[[], None] = lambda: None,
    agree: Callable[[float], float] = float,
) -> list[Reference]:
    """Record the outputs of a masked model on a batch and, if that leaves blocks unproven, on one that is made for it.

    Args:
        model: The model.
        blocks: The blocks that lose units.
        factors: Factor of each gate or unit of each block; 0 for those that are removed.
        masked: Context manager that multiplies the features by factors.
        probe: The batch; made from the model's configuration if None.
        after_pass: Called after each forward pass, to free what a sharded model has gathered.
        agree: Function that returns the largest of the numbers of all processes, which then decide alike.
    """
    first = record_reference(model, blocks, factors, masked, probe, after_pass=after_pass, agree=agree)
    if probe is None or not first.unproven:
        return [first]
    # A batch of texts alone does not reach the vision tower.
    with suppress(Exception):
        own = record_reference(model, blocks, factors, masked, None, after_pass=after_pass, agree=agree)
        if first.unproven - own.unproven:
            return [first, own]
    return [first]


def record_reference(
    model: nn.Module,
    blocks: Sequence[Block],
    factors: Sequence[Tensor],
    masked: Masked,
    probe: Mapping[str, Tensor] | None,
    *,
    after_pass: Callable[[], None] = lambda: None,
    agree: Callable[[float], float] = float,
    finds_unproven: bool = True,
) -> Reference:
    """Record the outputs of a masked model on one batch.

    The model runs a second time with all factors lower by one rounding, to estimate its rounding error.

    Args:
        model: As in :func:`record_references`, like the others.
        blocks: The blocks that lose units.
        factors: Factor of each gate or unit of each block.
        masked: Context manager that multiplies the features by factors.
        probe: The batch; made from the model's configuration if None.
        after_pass: Called after each forward pass.
        agree: Function that returns the largest of the numbers of all processes, which then decide alike.
        finds_unproven: Whether to find the blocks without an effect, which takes a backward pass, and a forward pass
            for each of them.
    """
    with masked(factors):
        probe, outputs = run_probe(model, probe)
    after_pass()

    def run(changed: Sequence[Tensor]) -> list[Tensor]:
        with masked(changed):
            found = forward_outputs(model, probe, with_gradients=torch.is_grad_enabled())
        after_pass()
        return found

    with torch.no_grad():
        perturbed = run([factor * (1 - rounding_of(outputs)) for factor in factors])
    tolerance = agree(rounding_tolerance(outputs, perturbed))
    names: frozenset[str] = frozenset()
    if finds_unproven:
        found = _without_effect(run, factors, outputs, tolerance, agree=agree)
        names = frozenset(blocks[index].name for index in found)
    return Reference(probe, outputs, tolerance, names)


def unproven_by(references: Sequence[Reference], blocks: Sequence[Block]) -> tuple[str, ...]:
    """Return the names of the blocks that none of the references proves, in the order of the blocks."""
    unproven = frozenset.intersection(*(reference.unproven for reference in references))
    return tuple(block.name for block in blocks if block.name in unproven)


def _without_effect(
    run: Callable[[Sequence[Tensor]], list[Tensor]],
    factors: Sequence[Tensor],
    outputs: list[Tensor],
    tolerance: float,
    *,
    agree: Callable[[float], float],
) -> list[int]:
    """Return the positions of the blocks that lose units, and whose features do not change the outputs.

    Tried by exchanging the kept and the removed units of a block, unless an estimate shows the change.
    """
    exchanged = [(factor == 0).to(factor) for factor in factors]
    estimates = _estimate(run, factors, exchanged, outputs)
    found = []
    for index, other in enumerate(exchanged):
        if not other.any() or agree(estimates[index]) > tolerance:
            continue
        changed = [*factors[:index], other, *factors[index + 1 :]]
        with torch.no_grad():
            if agree(max_relative_difference(outputs, run(changed))) <= tolerance:
                found.append(index)
    return found


def _estimate(
    run: Callable[[Sequence[Tensor]], list[Tensor]],
    factors: Sequence[Tensor],
    exchanged: Sequence[Tensor],
    outputs: list[Tensor],
) -> list[float]:
    """Estimate to first order how much exchanging the units of each block would change the outputs, by one gradient.

    Returns:
        For each block about the root mean square of the change, relative to the largest output; zero where there is no
        gradient.
    """
    leaves = [factor.detach().clone().requires_grad_() for factor in factors]
    try:
        with torch.enable_grad():
            terms = [_projected(output, largest) for output, largest in zip(run(leaves), outputs, strict=True)]
            gradients = torch.autograd.grad(torch.stack(terms).sum(), leaves, allow_unused=True)
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
