"""head-gating compare: runs and sweeps in one table, and folders that cannot be compared."""

import json
import sys
from pathlib import Path

import pytest

from gating.report.score import Score
from gating.run.sweep.results import compare as read
from gating.run.sweep.tradeoff.table import print_choice
from tests.support.sweeps import write_run

PERPLEXITY = Score("perplexity", scale=1, unit="", higher_is_better=False)


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    return {
        "dense": write_run(tmp_path / "dense", "objective=none"),
        "half": write_run(tmp_path / "half", "objective.num_heads=36", num_heads=36, speedup=1.2, macs=80, val_=0.895),
        "few": write_run(tmp_path / "few", "objective.num_heads=9", num_heads=9, speedup=1.5, macs=60, val_=0.87),
    }


def test_runs_are_compared_and_one_is_recommended(compare, runs):
    out = compare(*runs.values())
    assert f"Recommended: 36 heads, in {runs['half']}, 1.20x faster" in out
    assert "0.50 points below the dense run's 90.00 %" in out
    out = compare(*runs.values(), "--max-drop", "3")
    assert "Recommended: 9 heads" in out


def test_the_figure_is_written_and_no_file_is_replaced(compare, runs, tmp_path):
    compare(*runs.values(), "--output", tmp_path / "new" / "figure.png")
    assert (tmp_path / "new" / "figure.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "mine.png").write_text("mine")
    with pytest.raises(SystemExit, match="mine\\.png exists already"):
        compare(*runs.values(), "--output", tmp_path / "mine.png")
    assert (tmp_path / "mine.png").read_text() == "mine"
    with pytest.raises(SystemExit, match="mine\\.png is no figure of this command, so it is not replaced"):
        compare(*runs.values(), "--output", tmp_path / "mine.png", "--overwrite")
    assert (tmp_path / "mine.png").read_text() == "mine"


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_only_a_figure_of_this_command_is_replaced(suffix, compare, runs, tmp_path):
    path = tmp_path / f"figure{suffix}"
    compare(*runs.values(), "--output", path)
    compare(*runs.values(), "--output", path, "--overwrite")
    path.write_bytes(path.read_bytes()[:8] + b"a picture of head-gating by somebody else")
    with pytest.raises(SystemExit, match="is no figure of this command"):
        compare(*runs.values(), "--output", path, "--overwrite")


@pytest.mark.parametrize(("suffix", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("PNG", b"\x89PNG")])
def test_the_suffix_is_the_format_of_the_figure(suffix, start, compare, runs, tmp_path):
    figure = tmp_path / f"figure.{suffix}"
    assert compare(*runs.values(), "--output", figure).splitlines()[-1] == f"The picture is in {figure}"
    assert figure.read_bytes().startswith(start)
    compare(*runs.values(), "--output", figure, "--overwrite")


@pytest.mark.parametrize("name", ["figure.txt", "figure"])
def test_a_figure_of_no_format_is_refused_before_the_runs_are_read(name, compare, tmp_path):
    with pytest.raises(SystemExit) as stop:
        compare(tmp_path / "nothing", "--output", tmp_path / name)
    assert str(stop.value) == (
        f"error: --output {tmp_path / name} names no picture: give a file that ends with .png, .pdf, .svg."
    )


def test_the_place_of_the_figure_is_no_part_of_the_json(compare, runs, tmp_path):
    json.loads(compare(*runs.values(), "--json", "--output", tmp_path / "figure.png"))


def test_json_has_the_same_choice(compare, runs):
    plain = json.loads(compare(*runs.values(), "--json"))
    assert [run["budget"] for run in plain["runs"]] == ["dense", "36 heads", "9 heads"]
    assert [run["recommended"] for run in plain["runs"]] == [False, True, False]


def test_a_folder_of_runs_is_expanded_and_its_unfinished_runs_are_listed(compare, runs, tmp_path):
    (runs["few"] / "metrics.json").unlink()
    out = compare(tmp_path)
    assert "36 heads" in out
    assert "9 heads" not in out
    assert f"{runs['few']}" in out
    assert "not finished" in out


def test_a_run_named_twice_counts_once(compare, runs, tmp_path):
    plain = json.loads(compare(tmp_path, runs["half"], "--json"))
    assert [len(run["folders"]) for run in plain["runs"]] == [1, 1, 1]


def test_seeds_are_one_row(compare, tmp_path):
    for seed, value in enumerate((0.9, 0.88)):
        write_run(tmp_path / f"d{seed}", "objective=none", f"seed={seed}", val_=value)
        write_run(tmp_path / f"r{seed}", "objective=random", "objective.num_heads=9", f"seed={seed}", val_=value)
    plain = json.loads(compare(tmp_path, "--json"))
    assert [(run["budget"], run["seeds"]) for run in plain["runs"]] == [("dense", [0, 1]), ("9 heads", [0, 1])]
    assert plain["runs"][1]["validation"] == pytest.approx(0.89)


def test_a_single_head_is_one_head(compare, tmp_path):
    write_run(tmp_path / "one", "objective.num_heads=1")
    (row,) = json.loads(compare(tmp_path, "--json"))["runs"]
    assert row["budget"] == "1 head"


def test_other_settings_in_which_runs_differ_are_shown(compare, tmp_path):
    for number, rate in enumerate(("1e-4", "3e-4")):
        write_run(tmp_path / str(number), "objective.num_heads=9", f"optimizer.lr={rate}")
    plain = json.loads(compare(tmp_path, "--json"))
    assert [run["settings"] for run in plain["runs"]] == ["optimizer.lr=0.0001", "optimizer.lr=0.0003"]


def test_settings_that_nobody_chose_are_not_shown(compare, tmp_path):
    write_run(tmp_path / "a", "objective.keep=0.25", "trainer.max_epochs=3", "task.metrics=[accuracy,f1]")
    write_run(tmp_path / "b", "objective.speedup=1.5", "trainer.max_steps=100")
    plain = json.loads(compare(tmp_path, "--json"))
    assert {run["budget"]: run["settings"] for run in plain["runs"]} == {
        "keep 0.25": "task.metrics=[accuracy,f1] trainer.max_epochs=3",
        "1.5x": "trainer.max_epochs=4 trainer.max_steps=100",
    }


def test_dense_runs_show_the_settings_that_tell_them_apart(compare, tmp_path):
    for rate, units in (("1e-4", "[heads]"), ("3e-4", "[heads,neurons]")):
        write_run(tmp_path / f"d{rate}", "objective=none", f"optimizer.lr={rate}", f"gates.units={units}")
    write_run(tmp_path / "a", "objective.num_heads=9", "optimizer.lr=5e-4")
    plain = json.loads(compare(tmp_path, "--json"))
    assert [run["settings"] for run in plain["runs"]] == [
        "gates.units=[heads] optimizer.lr=0.0001",
        "gates.units=[heads,neurons] optimizer.lr=0.0003",
        "",
    ]


@pytest.mark.parametrize("width", [80, 130])
def test_settings_are_never_broken(width, compare, tmp_path, monkeypatch, capsys):
    """In a pipe; and on a terminal, where the table lacks them if it would be too wide."""
    long = tmp_path / "folder_of_a_name_that_no_terminal_has_room_for_beside_the_numbers"
    for number, end in enumerate(("0.5", "0.75")):
        write_run(long / f"{number}", "objective.num_heads=9", f"objective.schedule.end={end}", f"recovery={end}")
    names = ["objective.schedule.end=0.5", "recovery=0.75"]
    lines = compare(long).splitlines()
    assert all(any(name in line for line in lines) for name in [*names, str(long / "0")])
    tradeoff = read([long / "0", long / "1"], max_drop=1.0)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_choice(tradeoff, setting="--max-drop")
    shown = capsys.readouterr().out.splitlines()
    assert all(any(name in line for line in shown) for name in names)
    assert any("validation" in line and ("settings" in line) == (width == 130) for line in shown)


def test_units_are_named_where_they_differ(compare, tmp_path):
    for number, units in enumerate(("heads", "[heads,neurons]")):
        write_run(tmp_path / str(number), "objective.speedup=1.5", f"gates.units={units}")
    plain = json.loads(compare(tmp_path, "--json"))
    assert {run["budget"] for run in plain["runs"]} == {"1.5x, heads", "1.5x, heads+neurons"}


def test_a_metric_that_falls_is_known(compare, tmp_path):
    task = ["task=causal_lm", "data=text", "data.train=a.txt"]
    write_run(tmp_path / "dense", *task, "objective=none", score=PERPLEXITY, val_=20.0, test_=20.0)
    write_run(tmp_path / "a", *task, "objective.num_heads=9", score=PERPLEXITY, val_=20.5, test_=21.0, speedup=1.3)
    write_run(tmp_path / "b", *task, "objective.num_heads=3", score=PERPLEXITY, val_=25.5, test_=21.0, speedup=1.5)
    out = compare(tmp_path)
    assert "Recommended: 9 heads" in out
    assert "0.50 above the dense run's 20.00" in out


def test_latencies_of_different_machines_are_not_compared(compare, runs, tmp_path):
    write_run(tmp_path / "gpu", "objective.num_heads=18", machine="a GPU", speedup=9.0, macs=70, val_=0.897)
    out = compare(tmp_path)
    assert "different machines" in out
    assert "1.43x less work" in out


def test_runs_of_other_models_refer_to_one_latency(compare, runs, tmp_path):
    other = {"num_parameters_before": 50, "num_parameters": 40, "latency_ms_before": 5.0, "speedup": 1.1}
    write_run(tmp_path / "small", "model=distilbert", "objective.num_heads=18", val_=0.899, **other)
    out = compare(runs["dense"], runs["half"], tmp_path / "small")
    assert "2.20x faster" in out
    assert "different dense models" in out


@pytest.mark.parametrize(
    ("overrides", "score", "message"),
    [
        (["data.train=b.tsv"], None, "the runs have different data, .*: data.train=a.tsv .*, data.train=b.tsv"),
        (["trainer.limit_test_batches=2"], None, "the runs have different data, .*: trainer.limit_test_batches"),
        (["task=regression"], None, "the runs have different tasks: gating.tasks.SequenceClassification"),
        ([], Score("f1"), r"the runs have different metrics: accuracy \(.*\), f1 \("),
    ],
)
def test_runs_that_measure_something_else_are_not_compared(overrides, score, message, compare, runs, tmp_path):
    write_run(tmp_path / "other", "objective.num_heads=18", *overrides, score=score)
    with pytest.raises(SystemExit, match=f"error: These runs cannot be compared: {message}"):
        compare(tmp_path)


def test_batch_size_and_length_of_texts_may_differ(compare, runs, tmp_path):
    write_run(tmp_path / "short", "objective.num_heads=18", "data.max_length=64", "data.batch_size=4", speedup=1.3)
    assert "Recommended: 18 heads data.batch_size=4 data.max_length=64" in compare(tmp_path)


def test_runs_evaluated_on_other_numbers_of_examples_or_tokens_are_not_compared(compare, tmp_path):
    """As with limits of batches of other sizes, and perplexities with other tokenizers."""
    perplexity = Score("perplexity", scale=1, unit="", higher_is_better=False)
    for score, name, numbers in (
        (None, "num_examples/val", (16, 64)),
        (None, "num_examples/test", (16, 64)),
        (perplexity, "num_targets/val", (1000, 400)),
    ):
        place = tmp_path / name
        dense = write_run(place / "dense", "objective=none", score=score, **{name: numbers[0]})
        write_run(place / "half", "objective.num_heads=36", score=score, speedup=1.2, **{name: numbers[1]})
        with pytest.raises(SystemExit, match=f"different data, .*: {name}={numbers[0]} .*, {name}={numbers[1]} "):
            compare(place)
        # It may be unknown, and each seed may draw other texts.
        old = write_run(place / "old", "objective.num_heads=36", score=score, speedup=1.2)
        other = write_run(place / "other", "objective.num_heads=36", "seed=1", score=score, **{name: numbers[1]})
        assert "conclusion" in compare(dense, old, other, "--json")


def test_the_batches_of_speedups_are_named_and_a_short_text_has_its_own(compare, tmp_path):
    timed = {"latency_words": "8 x 107 tokens, p95", "latency_words_short": "1 x 20 tokens, median"}
    write_run(tmp_path / "dense", "objective=none", **timed)
    write_run(tmp_path / "a", "objective.num_heads=18", speedup=1.53, speedup_short=1.21, **timed)
    timed["latency_words"] = "2 x 107 tokens, p95"
    write_run(tmp_path / "b", "objective.num_heads=9", speedup=1.83, **timed)
    out = compare(tmp_path)
    assert "Speed-ups are those of 2 x 107 tokens, p95; 8 x 107 tokens, p95." in out
    assert "Those of a short text are those of 1 x 20 tokens, median." in out
    assert "short text" in out
    assert "1.21x" in out


def test_folders_that_are_no_finished_run_are_refused(compare, runs, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, message in (
        (tmp_path / "empty", "holds no finished run"),
        (tmp_path / "nothing", "is not a folder"),
    ):
        with pytest.raises(SystemExit, match=message):
            compare(folder)
    (runs["few"] / "metrics.json").unlink()
    with pytest.raises(SystemExit, match=f"The run in {runs['few']} is not finished.*resume={runs['few']}"):
        compare(runs["dense"], runs["few"])
    (runs["half"] / "metrics.json").write_text("[]")
    with pytest.raises(SystemExit, match=r"metrics\.json does not have the numbers of a run"):
        compare(runs["half"])


@pytest.mark.parametrize("value", ["-1", "nan", "much"])
def test_a_loss_that_is_no_number_is_refused(value, compare, runs, capsys):
    with pytest.raises(SystemExit):
        compare(runs["dense"], f"--max-drop={value}")
    assert "--max-drop" in capsys.readouterr().err
