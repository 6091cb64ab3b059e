"""Tables of a run for the console."""

import io

from rich.console import Console

from gating.report.rows import CompactReport, Row, print_report

KEPT = [("encoder.layer.0", [0, 3], 4), ("encoder.layer.1", [], 4), ("encoder.layer.2", [0, 1, 2, 3], 4)]
NEURONS = [("encoder.layer.0.output.dense", 64, 128), ("encoder.layer.1.output.dense", 0, 3072)]
REPORT = CompactReport(
    rows=[Row("attention heads", "12", "6", "0.50")],
    metrics=[("end of search", "91.00 %", "90.00 %"), ("compact", "92.00 %", "-")],
    notes=["Measured on one thread."],
)


def shown(neurons=()):
    console = Console(file=io.StringIO(), width=120)
    print_report(console, KEPT, REPORT, neurons=neurons)
    return console.file.getvalue()


def test_the_tables_show_heads_neurons_sizes_stages_and_notes():
    text = shown(NEURONS)
    for wanted in ("attention heads", "0.50", "end of search", "91.00 %", "92.00 %", "Accuracy", "Measured on one"):
        assert wanted in text
    rows = (("layer.0 ", "█··█", "2 of 4"), ("layer.1 ", "····", "0 of 4"), ("layer.2 ", "████", "4 of 4"))
    for name, marks, count in rows:
        (line,) = [line for line in text.splitlines() if name in line]
        assert marks in line
        assert count in line
    assert "64 of 128" in text
    assert "0 of 3,072" in text
