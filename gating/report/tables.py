"""Tables of a run for the console."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gating.report.rows import CompactReport, KeptHeads, KeptNeurons


def print_report(
    console: Console, kept: Sequence[KeptHeads], report: CompactReport, *, neurons: Sequence[KeptNeurons] = ()
) -> None:
    """Print the kept heads and neurons, the sizes before and after, and the metric at each stage."""
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


def print_samples(console: Console, samples: Sequence[Mapping[str, str]]) -> None:
    """Print samples of generated text, each a table of its texts by label."""
    for sample in samples:
        table = Table(show_header=False, title_justify="left", title="Written by the compact model")
        for name, text in sample.items():
            table.add_row(name, Text(text))
        console.print(table)


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
