"""The numbers of a compact model, before they are shown: its kept units, sizes, speed and metrics."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from torch import nn

from gating.pruning.latency import LatencyComparison
from gating.report.metadata import EvaluatedData
from gating.structure.attention import iter_attention_blocks
from gating.structure.feed_forward import iter_feed_forward_blocks
from gating.structure.layers import kept_layers, layers_record, original_rows
from gating.units import UNITS

# Name of an attention block, original numbers of its kept heads, number of its heads in the dense model.
KeptHeads = tuple[str, Sequence[int], int]

# Name of a feed-forward block, number of its kept neurons, number of its neurons in the dense model.
KeptNeurons = tuple[str, int, int]


class Row(NamedTuple):
    """One measured quantity, its unit in the name; the ratio is of the two values as they are shown."""

    name: str
    before: str
    after: str
    ratio: str


@dataclass(frozen=True)
class CompactReport:
    """Measurements of a compact model.

    Attributes:
        rows: Sizes and speed before and after.
        metrics: For each stage, its title and the formatted validation and test metric.
        metric_name: Name of this metric.
        notes: Sentences on the method of measurement.
        warnings: Warnings about the outcome, as sentences.
        data: Data set of the scores.
        scores: Results for the metadata of the card: split (``validation`` or ``test``), metric and value.
        base_model: Name on the hub of the model that this one was made from; by default as its folder says.
    """

    rows: list[Row] = field(default_factory=list)
    metrics: list[tuple[str, str, str]] = field(default_factory=list)
    metric_name: str = "accuracy"
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    data: EvaluatedData | None = None
    scores: list[tuple[str, str, float]] = field(default_factory=list)
    base_model: str | None = None


# Name in tables, divisor of the shown value, and its least number of digits; None for whole numbers.
SHOWN = {
    **{name: (f"{unit.label} {name}", 1, None) for name, unit in UNITS.items()},
    "layers": ("layers", 1, None),
    "macs": ("multiply-accumulates (millions)", 1e6, 3),
    "parameters": ("parameters", 1, None),
    "megabytes": ("size on disk (MB)", 1, 3),
    "cache": ("key-value cache (bytes per token)", 1, None),
}


def heads_per_layer(model: nn.Module) -> list[KeptHeads]:
    """Return the kept heads of each attention block of the original model."""
    rows = ((block.name, (block.head_ids, block.num_heads_before)) for block in iter_attention_blocks(model))
    found = original_rows(layers_record(model), "heads", rows, removed=lambda size: ((), size))
    return [(name, *numbers) for name, numbers in found]


def neurons_per_layer(model: nn.Module) -> list[KeptNeurons]:
    """Return the number of kept neurons of each feed-forward block of the original model, and its former number."""
    rows = ((block.name, (block.num_neurons, block.width_before)) for block in iter_feed_forward_blocks(model))
    found = original_rows(layers_record(model), "neurons", rows, removed=lambda size: (0, size))
    return [(name, *numbers) for name, numbers in found]


def layers_left(model: nn.Module) -> str:
    """Return the layers that stay in the lists that some have left, as a sentence; empty if none did."""
    parts = [f"{name} that stay: {', '.join(map(str, numbers))}" for name, numbers in kept_layers(model).items()]
    return f"Layers of {'; of '.join(parts)}." if parts else ""


def size_rows(sizes: Mapping[str, tuple[float, float]], kinds: Mapping[str, tuple[int, int]]) -> list[Row]:
    """Return rows of the sizes and kinds of heads of :class:`~gating.report.summary.Summary`."""
    named = [(SHOWN[name], numbers) for name, numbers in sizes.items()]
    heads = [((f"{kind} heads", 1, None), numbers) for kind, numbers in kinds.items()]
    rows = []
    for (name, unit, digits), numbers in (*named[:1], *heads, *named[1:]):
        if numbers[0]:
            before, after = (show_number(number / unit, digits) for number in numbers)
            rows.append(Row(name, before, after, show_share(quotient(after, before))))
    return rows


def latency_rows(latencies: Iterable[LatencyComparison]) -> list[Row]:
    """Return a row for each timed batch."""
    return [
        Row(
            f"latency (ms), {times.words}",
            show_number(1e3 * times.before, 4),
            show_number(1e3 * times.after, 4),
            times.gain,
        )
        for times in latencies
    ]


def show_number(number: float, digits: int | None) -> str:
    """Return a number with at least so many digits; a whole one if None.

    Example:
        >>> show_number(0.2046, 3), show_number(1234.5, 3), show_number(1234, None)
        ('0.205', '1,234', '1,234')
    """
    decimals = digits - 1 - math.floor(math.log10(abs(number))) if digits and number else 0
    return f"{number:,.{max(0, decimals)}f}"


def quotient(first: str, second: str) -> float:
    """Return the quotient of two numbers, rounded as they are shown."""
    return float(first.replace(",", "")) / float(second.replace(",", ""))


def show_share(share: float, *, scale: int = 1, decimals: int = 2) -> str:
    """Return a share of ``scale``, with more decimals where these would show all or nothing in place of a part.

    Example:
        >>> show_share(0.5), show_share(0.99993), show_share(0.9996, scale=100, decimals=0)
        ('0.50', '0.9999', '99.96')
    """
    texts = (f"{scale * share:.{places}f}" for places in range(decimals, 9))
    return next((text for text in texts if share in (0, 1) or float(text) not in (0, scale)), f"{scale * share:.1e}")


def print_report(
    console: Console, kept: Sequence[KeptHeads], report: CompactReport, *, neurons: Sequence[KeptNeurons] = ()
) -> None:
    """Print the kept heads and neurons, the sizes before and after, and the metric at each stage; no warnings again."""
    if kept:
        console.print(kept_heads_table(kept))
    if any(num_kept < before for _, num_kept, before in neurons):
        console.print(kept_neurons_table(neurons))
    sizes = Table("", "before", "after", "ratio", title="The model", title_justify="left")
    for row in report.rows:
        sizes.add_row(*row)
    console.print(sizes)
    stages = Table("stage", "validation", "test", title=report.metric_name.capitalize(), title_justify="left")
    for stage in report.metrics:
        stages.add_row(*stage)
    console.print(stages)
    for note in report.notes:
        console.print(note, style="dim")


def kept_heads_table(kept: Sequence[KeptHeads]) -> Table:
    """Return a table with a row of marks for the heads of each attention block."""
    table = Table("attention block", "heads", "kept", title="Heads per layer", title_justify="left")
    for name, head_ids, num_heads in kept:
        marks = "".join("█" if head in set(head_ids) else "·" for head in range(num_heads))
        table.add_row(name, marks, f"{len(head_ids)} of {num_heads}")
    return table


def kept_neurons_table(neurons: Sequence[KeptNeurons]) -> Table:
    """Return a table with the number of kept neurons of each feed-forward block."""
    table = Table("feed-forward block", "kept", title="Neurons per layer", title_justify="left")
    for name, kept, before in neurons:
        table.add_row(name, f"{kept:,} of {before:,}")
    return table
