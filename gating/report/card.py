"""The model card of a compact model: what was removed and what was measured."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from gating.structure.record import RECORD_KEY

__all__ = ["CompactReport", "Row", "heads_per_layer", "write_card"]


@dataclass(frozen=True)
class Row:
    """One measured quantity before and after.

    Attributes:
        name: What was measured, with its unit.
        before: The dense model's value, ready to print.
        after: The compact model's value, ready to print.
        ratio: How the two compare, ready to print.
    """

    name: str
    before: str
    after: str
    ratio: str


@dataclass(frozen=True)
class CompactReport:
    """What a run measured of its compact model.

    Attributes:
        rows: Sizes and speed before and after.
        metrics: Rows of stage, validation and test metric, ready to print.
        metric_name: Name of that metric.
        notes: Sentences on how it was measured.
    """

    rows: list[Row] = field(default_factory=list)
    metrics: list[tuple[str, str, str]] = field(default_factory=list)
    metric_name: str = "accuracy"
    notes: list[str] = field(default_factory=list)


_USAGE = """\
## Use

```python
from transformers import AutoModel{task}

model = AutoModel{task}.from_pretrained("{folder}", trust_remote_code=True)
```

`trust_remote_code` lets the small Python files of this folder rebuild the layers with fewer heads; nothing else is
needed. Where head-gating is installed, `gating.load_compact("{folder}")` loads the model without running them.
"""


def write_card(path: Path, model: PreTrainedModel, report: CompactReport | None) -> None:
    """Write the model card, a README.md with the metadata header that hubs read.

    Args:
        path: The file.
        model: The compact model.
        report: What was measured; left out, the card says what was removed.
    """
    kept = heads_per_layer(model)
    parts = [
        "---\nlibrary_name: transformers\ntags:\n- head-gating\n- pruned\n---\n",
        f"# Compact {model.config.model_type}\n",
        "Attention heads were removed from this model with head-gating; the others kept their original numbers.\n",
    ]
    if report is not None:
        parts.append(
            _table(["", "before", "after", "ratio"], [[r.name, r.before, r.after, r.ratio] for r in report.rows])
        )
        if report.metrics:
            heading = ["stage", f"validation {report.metric_name}", f"test {report.metric_name}"]
            parts.append(_table(heading, [list(row) for row in report.metrics]))
        parts += [f"{note}\n" for note in report.notes]
    parts.append("## Heads that were kept\n")
    rows = [[name, _listed(heads), f"{len(heads)} of {num_heads}"] for name, heads, num_heads in kept]
    parts.append(_table(["attention block", "numbers of the kept heads", "kept"], rows))
    parts.append(_USAGE.format(task=_auto_suffix(model), folder="."))
    path.write_text("\n".join(parts), encoding="utf-8")


def heads_per_layer(model: nn.Module) -> list[tuple[str, list[int], int]]:
    """Return block name, kept heads and number of heads before, from the record in the model's configuration."""
    record = getattr(model.config, RECORD_KEY)
    return [(name, block["kept_heads"], block["num_heads"]) for name, block in record["blocks"].items()]


def _listed(heads: list[int]) -> str:
    return ", ".join(map(str, heads)) or "none"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _auto_suffix(model: PreTrainedModel) -> str:
    """Return what follows ``AutoModel`` in the name of the Auto class that loads this model."""
    name = type(model).__name__
    auto_map: dict[str, str] = model.config.auto_map
    matches = [auto for auto, reference in auto_map.items() if reference.endswith(f".{name}")]
    return (matches or ["AutoModel"])[0].removeprefix("AutoModel")
