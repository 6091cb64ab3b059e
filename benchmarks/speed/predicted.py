"""Time that the fit of a speed-up predicts for compact models, beside their measured time."""

import statistics
from collections.abc import Iterator

import torch
from torch import nn

from benchmarks.speed.shapes import Bench, Row, text_batch
from gating.gates import HeadGates, create_gates
from gating.pruning.latency.copies import MAX_SECONDS, CopyTimer, TimeBudget
from gating.pruning.latency.costs import measure_latency_costs

NUM_CHOICES = 30
SIZES = [(1, 16), (1, 128), (8, 16), (8, 128)]
# Errors that count as near.
NEAR = 0.05


def measure_predicted(bench: Bench) -> Iterator[Row]:
    """Fit costs in the time that a run has, and compare them with measured times of random choices of gates."""
    number = 3 if bench.quick else NUM_CHOICES
    dense = bench.bert("minilm").eval()
    _scale_norms(dense)
    gates = create_gates(dense, units=["heads", "neurons"])
    choices = list(_random_choices(gates, number))
    for batch_size, length in bench.some(SIZES, (2, 16)):
        batch = text_batch(dense, batch_size, length)
        with TimeBudget(1.0 if bench.quick else MAX_SECONDS / 2).stage() as seconds:
            costs = measure_latency_costs(gates, CopyTimer(dense, batch, seconds=seconds))
        ratios = []
        with TimeBudget(1.0 if bench.quick else 5 * number).stage() as seconds:
            timer = CopyTimer(dense, batch, seconds=seconds)
            for index, kept in enumerate(choices):
                found = timer.time_kept(gates, kept, share=1 / (number - index))
                ratios.append(costs.predict(gates, kept) * found.speedup)
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        near = sum(abs(ratio - 1) <= NEAR for ratio in ratios) / number
        case = f"{bench.name('minilm')} {batch_size} x {length}, {number} choices"
        row = {"what": "predicted / measured time", "case": case, "ratio": (median, low, high), "near": near}
        row |= {"noise": statistics.median(found.error for found in timer.timed)}
        row |= {"units": sum(costs.shares.values()), "open": sum(costs.blocks.values()), "fixed": costs.fixed}
        yield row | {"errors": [round(ratio - 1, 4) for ratio in ratios]}


def _scale_norms(model: nn.Module) -> None:
    """Give norms other weights than 1, as training does: an empty layer of equal norms would pass its input on."""
    generator = torch.Generator().manual_seed(0)
    for norm in (module for module in model.modules() if isinstance(module, nn.LayerNorm)):
        with torch.no_grad():
            norm.weight.copy_(0.8 + 0.4 * torch.rand(norm.weight.shape, generator=generator))


def _random_choices(gates: HeadGates, number: int) -> Iterator[torch.Tensor]:
    """Yield choices of gates: some of the blocks are empty, the others keep random numbers, few or many."""
    generator = torch.Generator().manual_seed(0)

    def draw(*options: float) -> float:
        return options[int(torch.randint(len(options), (), generator=generator))]

    for _ in range(number):
        empty, most = draw(0.0, 0.2, 0.4, 0.6), draw(0.25, 0.5, 1.0)
        kept = []
        for size in gates.block_sizes:
            is_empty = float(torch.rand((), generator=generator)) < empty
            count = 0 if is_empty else int(torch.randint(1, max(2, round(size * most) + 1), (), generator=generator))
            kept.append(torch.arange(size) < count)
        yield torch.cat(kept)
