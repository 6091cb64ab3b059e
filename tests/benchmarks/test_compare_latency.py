"""The comparison against latency: paired differences, table, figure, and the speed-up of the first layers."""

import re
import sys

import pytest

from benchmarks import example, page, records
from benchmarks.compare import __main__ as compare
from benchmarks.compare import kept, latency
from benchmarks.compare.methods import INT8, LATENCY_METHODS, SPEEDUP, read_method
from benchmarks.compare.paired import Difference, difference, smallest_difference
from benchmarks.compare.summary import summary
from tests.support.tiny_run import checked_settings, make_inputs


def make_rows(
    method: str, asked: float | None, speedup: float, scores: tuple[float, ...], *, data: str = "toy"
) -> list[dict]:
    return [
        {
            "data": data,
            "method": method,
            "asked": asked,
            "seed": seed,
            "steps": 600,
            "metric": "accuracy",
            "num_heads": 18,
            "num_neurons": 1024,
            "speedup": speedup,
            "test/accuracy": score,
            "latency_batch": "8 x 40",
            "cpu": "CPU",
            "cores": 2,
            "threads": 1,
            "version/torch": "2",
            "version/transformers": "5",
        }
        for seed, score in enumerate(scores)
    ]


ROWS = [
    # The speed-up of the dense model is noise.
    *make_rows("none", None, 1.02, (0.90, 0.91, 0.92)),
    *make_rows("both", 2, 1.97, (0.88, 0.89, 0.91)),
    *make_rows("both", 1.5, 1.5, (0.89, 0.90, 0.91)),
    *make_rows("heads", 8, 1.46, (0.86, 0.88, 0.88)),
    *make_rows("heads", 2, 1.57, (0.80, 0.80, 0.80)),
    *make_rows("layers", 3, 2.02, (0.85, 0.87)),
    *make_rows("layers", 2, 2.9, (0.80, 0.80)),
    *make_rows("importance", 2, 2.0, (0.87, 0.88, 0.90)),
    *make_rows("mine", 2, 2.0, (0.5,)),
]


@pytest.mark.parametrize("name", [name for name in LATENCY_METHODS if not name.endswith(INT8)])
def test_every_method_is_a_configuration(name):
    method = LATENCY_METHODS[name]
    checked_settings(method.settings_for(2 if method.takes_number else None))


def test_given_settings_are_asked_for_a_speedup_unless_they_have_a_size():
    mine = read_method("mine:objective=budget gates.units=neurons", LATENCY_METHODS, ask=SPEEDUP)
    assert mine.settings_for(2.0)[-1] == "objective.speedup=2"
    assert mine.settings_for(1.5)[-1] == "objective.speedup=1.5"
    assert not read_method("few:objective=budget objective.num_heads=3", LATENCY_METHODS, ask=SPEEDUP).takes_number
    assert LATENCY_METHODS["layers"].settings_for(3)[-1] == "+model.config.num_hidden_layers=3"


def test_differences_are_paired_by_seed():
    paired = difference({0: 3.0, 1: 5.0, 7: 4.0}, {7: 2.0, 1: 4.0, 2: 9.0})
    assert paired.values == (1.0, 2.0)
    assert (paired.mean, paired.error) == (1.5, 0.5)
    assert str(Difference((0.25,))) == "+0.25"
    assert difference({0: 1.0}, {1: 1.0}) is None


def test_smallest_difference_is_that_of_a_t_test():
    # Student's quantiles for 4 and 8 degrees of freedom are 2.776 and 2.306; the standard deviation is 1.
    five = Difference((-1.2649, -0.6325, 0.0, 0.6325, 1.2649))
    assert smallest_difference([five])[5] == pytest.approx(2.776 / 5**0.5, rel=0.01)
    assert smallest_difference([five, five])[5] == pytest.approx(2.306 / 5**0.5, rel=0.01)
    assert smallest_difference([Difference((1.0,))]) == {}


def test_dense_runs_that_do_not_learn_are_named_and_left_out():
    rows = [
        *make_rows("none", None, 1.0, (0.90, 0.34, 0.92)),
        *make_rows("both", 2, 2.0, (0.88, 0.89, 0.30)),
    ]
    text = latency.table(rows)
    assert "| 91.00 % |" in text
    assert "toy: the dense model ended at 34.00 % with seed 1, and this run is left out." in text
    # A failure of another method counts.
    assert "-32.00 ± 30.00" in text
    assert "| 69.00 % |" in text
    assert "| 91.0 | 69.0 |" in summary(rows)


def test_the_first_layers_are_compared_with_ours_with_the_same_teacher():
    rows = [
        *ROWS,
        *make_rows("both_taught", 2, 2.0, (0.9, 0.9)),
        *make_rows("layers_taught", 3, 2.05, (0.86, 0.86)),
        *make_rows("none_int8", None, 2.5, (0.9, 0.9)),
    ]
    pairs = latency.pair_points(latency.points_of(rows, "toy", 600))
    assert pairs["layers_taught", 3].method == "both_taught"
    assert pairs["layers", 3].method == "both"
    assert ("none_int8", None) not in pairs


def test_models_with_8_bit_weights_are_made_from_kept_runs(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"none_int8 is no run of its own: python -m benchmarks\.compare\.kept"):
        read_method("none_int8", LATENCY_METHODS, ask=SPEEDUP)
    results, rows = tmp_path / "results.jsonl", [{**row, "settings": []} for row in ROWS]
    for row in rows:
        records.append(results, row)
    for name in ("toy-none-None-0-600", "toy-both-2-0-600"):
        (tmp_path / name / "compact").mkdir(parents=True)
    measured = []

    def measure(run, dense, row):
        measured.append((run.name, dense.name))
        return [{**row, "timed": "now", "speedup": 2.0}, {**row, "timed": "now", "method": f"{row['method']}{INT8}"}]

    monkeypatch.setattr(kept, "measure", measure)
    monkeypatch.setattr(sys, "argv", ["kept", str(tmp_path), "--results", str(results)])
    kept.main()
    kept.main()
    assert measured == [("toy-none-None-0-600",) * 2, ("toy-both-2-0-600", "toy-none-None-0-600")]
    found = records.read(results)
    assert [row["method"] for row in found[:2]] == ["none", "none_int8"]
    assert len(found) == len(rows) + 2


def test_table_compares_methods_that_are_as_fast():
    text = latency.table(ROWS)
    header, _, *lines = [line for line in re.sub(" +", " ", text).splitlines() if line.startswith("|")]
    columns = [
        "toy, 600 steps",
        "speed-up",
        "heads",
        "neurons",
        "test accuracy",
        "change from dense",
        "both ahead by",
        "seeds",
    ]
    assert header == f"| {' | '.join(columns)} |"
    cells = {line.split(" | ")[0].removeprefix("| "): line.removesuffix(" |").split(" | ")[1:] for line in lines}
    assert next(iter(cells)) == "dense"
    assert cells["dense"] == ["1.00", "18", "1,024", "91.00 %", "-", "-", "3"]
    assert cells["both, exact budget: 1.5x"][4:] == ["-1.00 ± 0.00", "-", "3"]
    assert cells["heads alone: 8 heads"][4:6] == ["-3.67 ± 0.33", "+2.67 ± 0.33"]
    assert cells["first layers: 3 layers"][5:] == ["+2.50 ± 0.50", "2"]
    assert cells["first layers: 2 layers"][5] == "-"
    assert cells["mine: 2"][5:] == ["+38.00", "1"]
    (told,) = latency.told_apart(ROWS)
    assert told in text
    assert re.fullmatch(
        r"toy, 600 steps: smaller differences can be chance: \d\.\d points to heads alone \(3 seeds\), .* points to "
        r"first layers \(2 seeds\), .*\.",
        told,
    )


def test_summary_has_means_over_data_sets():
    other = [
        *make_rows("none", None, 1.0, (0.80, 0.81, 0.82), data="other"),
        *make_rows("both", 2, 1.9, (0.70, 0.71), data="other"),
        *make_rows("layers", 3, 1.9, (0.60, 0.62), data="other"),
    ]
    header, _, *lines = summary([*ROWS, *other]).splitlines()
    assert header == "|  | dense | both | heads alone | first layers |"
    # Seeds that a set lacks are left out, and so are speeds.
    assert lines == ["| 1.5x | 86.0 | - | - | - |", "| 2x | 86.0 | 79.5 | - | 73.5 (+6.00 ± 0.50) |"]
    # Of two equally fast models of heads alone, the nearest in speed.
    assert summary(ROWS).splitlines()[2] == "| 1.5x | 91.0 | 90.0 | 87.3 (+2.67 ± 0.33) | - |"


def test_conditions_name_threads_and_batch():
    assert latency.conditions(ROWS) == [
        "toy: CPU, 2 cores, 1 thread(s), torch 2, transformers 5; 600 steps; seeds 0, 1, 2; "
        "latency of 8 x 40 tokens in single precision, in turns with the dense model."
    ]


@pytest.mark.parametrize("rows", [ROWS, []])
def test_figure_is_drawn(rows, tmp_path):
    latency.draw(rows, tmp_path / "new" / "figure.png")
    assert (tmp_path / "new" / "figure.png").stat().st_size > 1000


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Return a function that runs the comparison on a tiny model, and returns its results."""
    left_out = ("objective", "trainer.max")
    data = "toy:" + " ".join(setting for setting in make_inputs(tmp_path) if not setting.startswith(left_out))

    def run(*arguments: str) -> list[dict]:
        usual = ["compare", "--against", "latency", "--data", data, "--seeds", "1", "--steps", "4"]
        results = ["--results", str(tmp_path / "latency.jsonl")]
        monkeypatch.setattr(sys, "argv", [*usual, *results, *arguments, "--settings", "trainer.precision=32-true"])
        compare.main()
        return records.read(tmp_path / "latency.jsonl")

    return run


@pytest.mark.slow
def test_first_layers_are_compared_with_the_full_model(command):
    (row,) = command("--methods", "layers", "--layers", "1")
    assert (row["num_heads_before"], row["num_heads"]) == (12, 4)
    assert row["num_parameters"] < row["num_parameters_before"]
    assert row["macs"] < row["macs_before"]
    assert row["speedup"] > 0
    assert re.fullmatch(r"\d+ x \d+", row["latency_batch"])


@pytest.mark.runs
def test_failed_runs_do_not_stop_the_others(command, monkeypatch, capsys):
    def fake(settings, folder, *, threads):
        if "objective.speedup=3" in settings:
            raise RuntimeError("speedup=3.0 cannot be reached")
        return {"num_heads": 30, "speedup": 1.5, "metric": "accuracy", "test/accuracy": 0.9}

    monkeypatch.setattr(compare, "train", fake)
    with pytest.raises(RuntimeError, match="1 of 2 runs failed"):
        command("--methods", "both", "--speedups", "3", "1.5")
    assert "cannot be reached" in capsys.readouterr().out
    monkeypatch.setattr(compare, "train", lambda *_, **__: pytest.fail("it was run again"))
    assert len(command("--methods", "both", "--speedups", "1.5")) == 1


@pytest.mark.runs
def test_example_has_means_against_dense(tmp_path, monkeypatch, capsys):
    results = tmp_path / "embedded.jsonl"
    numbers = {"num_heads": 18, "num_parameters": 1000, "latency_batch": "8 x 45"}
    # The ratio is that of the two latencies, whatever the runs measured.
    numbers |= {"latency_ms_before": 3.0, "latency_ms": 2.0, "speedup": 1.6}
    calls = []

    def fake(settings, folder, *, threads):
        calls.append(settings)
        seed = int(settings[-1].removeprefix("seed="))
        score = (0.9 if "objective=none" in settings else 0.88) + 0.01 * seed * (len(settings) - 3)
        return {**numbers, "seed": seed, "metric": "accuracy", "test/accuracy": score}

    monkeypatch.setattr(example, "train", fake)
    example.main(["--seeds", "0", "1", "--jobs", "2", "--results", str(results)])
    header, _, *lines, _, below = capsys.readouterr().out.splitlines()[6:13]
    assert header == "|  | heads | neurons | parameters | test accuracy (change from dense) | forward pass |"
    both = "`make train ARGS='gates.units=[heads,neurons] objective.speedup=2'`"
    assert lines == [
        "| dense: `make train ARGS=objective=none` | 18 | - | 1,000 | 90.50 % | 2.0 ms |",
        "| `make train` | 18 | - | 1,000 | 88.00 % (-2.50 ± 0.50) | 3.0 to 2.0 ms, 1.50x |",
        f"| {both} | 18 | - | 1,000 | 89.00 % (-1.50 ± 0.50) | 3.0 to 2.0 ms, 1.50x |",
    ]
    assert re.search(
        r"1 thread\(s\), 8 x 45 tokens, each model timed in turns with the dense one, 2 seed\(s\)\.$", below
    )
    assert ["objective=none", "logger=csv", "callbacks=none", "seed=0"] in calls
    assert len(calls) == 6
    example.main(["--seeds", "0", "1", "--results", str(results)])
    assert len(calls) == 6


def test_pages_take_the_tables_of_both(tmp_path, monkeypatch):
    marks = "<!-- begin: python -m benchmarks.{} -->\nold\n<!-- end -->\n"
    readme, accuracy = tmp_path / "README.md", tmp_path / "accuracy.md"
    readme.write_text(marks.format("example"))
    names = ("compare --against latency", "compare --against latency, means")
    accuracy.write_text("".join(map(marks.format, names)))
    for name, rows in (("latency", ROWS), ("embedded", [])):
        for row in rows:
            records.append(tmp_path / f"{name}.jsonl", row)
    for name, path in (("README", readme), ("ACCURACY", accuracy), ("RESULTS", tmp_path)):
        monkeypatch.setattr(page, name, path)
    page.write_comparisons()
    assert summary(ROWS) in accuracy.read_text()
    assert latency.table(ROWS) in accuracy.read_text()
