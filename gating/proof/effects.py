"""Which blocks have no effect on the outputs of a model for a batch, so that these prove nothing of them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gating.proof.outputs import max_relative_difference

__all__ = ["without_effect"]


def without_effect(
    run: Callable[[Sequence[Tensor]], list[Tensor]],
    factors: Sequence[Tensor],
    outputs: list[Tensor],
    tolerance: float,
    *,
    agree: Callable[[float], float],
) -> list[int]:
    """Return the positions of the blocks that lose units, and whose features do not change the outputs.

    Tried by exchanging the kept and the removed units of a block, unless an estimate shows the change.

    Args:
        run: Function from the factors of each block to the outputs, with a graph where gradients are enabled.
        factors: Factor of each gate or unit of each block; 0 for those that are removed.
        outputs: The outputs with these factors.
        tolerance: Largest relative difference that rounding explains.
        agree: Function that returns the largest of the numbers of all processes.
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
