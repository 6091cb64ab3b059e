"""Gates of each layer at each validation, as the page of a run shows them."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from gating.report.history import History, head_values
from gating.report.results import RunResults
from gating.report.rows import KeptHeads, KeptNeurons

__all__ = ["Frame", "Panel", "frames_of", "layer_of", "moved_choice", "panels_of", "short_names"]

# More frames than a person moves a slider over; a page of 48 layers with 64 heads stays below two megabytes.
_MOST_FRAMES = 60
Block = TypeVar("Block", KeptHeads, KeptNeurons)


@dataclass(frozen=True)
class Frame:
    """The gates at one time.

    Attributes:
        label: The time and its numbers.
        gates: Gate value of each head in percent, in the order of the panels; None for a head without a gate.
        widths: Share of each feed-forward block that is open, in the order of the panels.
    """

    label: str
    gates: list[int | None]
    widths: list[float]


@dataclass(frozen=True)
class Panel(Generic[Block]):
    """Blocks of one kind in one tower of a model, such as the cross-attention of a decoder.

    Attributes:
        title: Name of the panel; empty for the only one.
        rows: For each block, the number of its layer and the block.
    """

    title: str
    rows: list[tuple[str, Block]]


def panels_of(blocks: Sequence[Block]) -> list[Panel[Block]]:
    """Return the panels of blocks: one for each tower, or for each kind of block in it if a layer has several."""
    towers: dict[str, list[tuple[str, str, Block]]] = {}
    for block in blocks:
        name = block[0]
        tower, layer = layer_of(name)
        kind = re.sub(r"\b\d+\b\.?", "", name.removeprefix(f"{tower}.{layer}" if tower else layer)).strip(".")
        towers.setdefault(tower, []).append((layer, kind, block))
    titles, panels = short_names(list(towers)), list[Panel[Block]]()
    for tower, members in towers.items():
        has_kinds = max(Counter(layer for layer, _, _ in members).values()) > 1
        kinds = list(dict.fromkeys(kind for _, kind, _ in members)) if has_kinds else [""]
        for kind, shown in short_names(kinds).items():
            rows = [(layer, block) for layer, its_kind, block in members if not has_kinds or its_kind == kind]
            if len({layer for layer, _ in rows}) < len(rows):
                rows = [(".".join(re.findall(r"\d+", block[0])), block) for _, block in rows]
            panels.append(Panel(" · ".join(filter(None, (titles[tower], shown))), rows))
    return panels


def layer_of(name: str) -> tuple[str, str]:
    """Return the path of the list of layers that a block belongs to, and its layer's number.

    Example:
        >>> layer_of("encoder.block.3.layer.1.DenseReluDense.wo")
        ('encoder.block', '3')
    """
    found = re.match(r"(.*?)\.?(\d+)(\.|$)", name)
    return (found[1], found[2]) if found else (name, "")


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Return paths without their common start and end; a single path is not named.

    Example:
        >>> short_names(["model.encoder.layers", "model.decoder.layers"])
        {'model.encoder.layers': 'encoder', 'model.decoder.layers': 'decoder'}
    """
    parts = [path.split(".") for path in paths]
    for end in (-1, 0):
        while all(parts) and len({part[end] for part in parts}) == 1:
            for part in parts:
                part.pop(end)
    return {path: ".".join(part) for path, part in zip(paths, parts, strict=True)}


def frames_of(results: RunResults, *, kept: Sequence[KeptHeads], neurons: Sequence[KeptNeurons]) -> list[Frame]:
    """Return the gates at each validation of the search, at its end and, in the last frame, after the removal."""
    history, score = results.history, results.score
    last = len(history.gate_values) - 1
    chosen = sorted({round(i * last / (_MOST_FRAMES - 1)) for i in range(_MOST_FRAMES)}) if last >= 0 else []
    frames = []
    for index in chosen:
        values, by_block = head_values(history, kept, index=index), history.gate_values[index]
        gates = [value for name, _, num_heads in kept for value in values.get(name, [None] * num_heads)]
        widths = [_share_open(by_block.get(name, ())) for name, _, _ in neurons]
        label = f"End of the search, step {results.search_steps:,}"
        if index < last and index < len(history.observations):
            seen = history.observations[index]
            label = f"Step {seen.step:,}, {score.name} {score.show(seen.metric)}"
        frames.append(_frame(label, "open", gates, widths, neurons))
    folded = head_values(history, kept, is_folded=True) if chosen else {}
    gates = [value for block in kept for value in _values_after(block, folded.get(block[0]))]
    widths = [after / max(before, 1) for _, after, before in neurons]
    return [*frames, _frame("After the removal", "stay", gates, widths, neurons)]


def moved_choice(history: History, kept: Sequence[KeptHeads]) -> str:
    """Return the difference between the open and the kept heads as a sentence; empty if there is none."""
    values = head_values(history, kept) if history.gate_values else {}
    removed = closed = 0
    for name, heads, _ in kept:
        for head, value in enumerate(values.get(name, ())):
            removed += value > 0 and head not in heads
            closed += value <= 0 and head in heads
    parts = [
        *([f"{removed} open {_heads(removed)} removed"] if removed else []),
        *([f"{closed} closed {_heads(closed)} kept"] if closed else []),
    ]
    if history.is_moved:
        changes = f": {' and '.join(parts)}" if parts else ", in feed-forward neurons alone"
        return f"Timing of compact copies after the search moved the choice{changes}."
    return f"By the choice of the objective, {' and '.join(parts)}." if parts else ""


def _heads(number: int) -> str:
    return "head was" if number == 1 else "heads were"


def _values_after(block: KeptHeads, values: Sequence[float] | None) -> list[float | None]:
    """Return the values of a block's heads after the removal: 0 for removed ones, None for a block without gates."""
    _, heads, num_heads = block
    if values is None and len(heads) == num_heads:
        return [None] * num_heads
    return [(1.0 if values is None else values[head]) if head in set(heads) else 0.0 for head in range(num_heads)]


def _share_open(gates: Sequence[float]) -> float:
    return sum(value > 0 for value in gates) / len(gates) if gates else 1.0


def _frame(
    label: str,
    verb: str,
    gates: Sequence[float | None],
    widths: Sequence[float],
    neurons: Sequence[KeptNeurons],
) -> Frame:
    # An open gate shows at least one percent.
    percent = [value if value is None else max(round(100 * min(value, 1)), int(value > 0)) for value in gates]
    parts = [f"{sum(value != 0 for value in percent):,} of {len(gates):,} heads"] if gates else []
    if neurons:
        num_open = sum(share * before for share, (_, _, before) in zip(widths, neurons, strict=True))
        parts.append(f"{100 * num_open / max(sum(before for _, _, before in neurons), 1):.0f} % of the neurons")
    return Frame(f"{label}: {' and '.join(parts)} {verb}", percent, [round(share, 4) for share in widths])
