"""The comparison of methods: its settings, its table and figure, and its plan of runs."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks import example, records
from benchmarks.compare import __main__ as compare
from benchmarks.compare import alone, runs
from benchmarks.compare.methods import LATENCY_METHODS, METHODS, Data, read_data, read_method
from benchmarks.compare.outcome import conditions, draw, table
from tests.support.tiny_run import ROOT, checked_settings, make_inputs


def make_row(
    method: str, asked: int | None, seed: int, accuracy: float, heads: int | None = None, *, steps: int = 1000
) -> dict:
    return {
        "data": "toy",
        "method": method,
        "asked": asked,
        "seed": seed,
        "steps": steps,
        "metric": "accuracy",
        "num_heads": heads or asked or 72,
        "test/accuracy": accuracy,
    }


ROWS = [
    *(make_row("none", None, seed, accuracy) for seed, accuracy in enumerate((0.9, 0.92))),
    *(make_row("budget", 8, seed, accuracy) for seed, accuracy in enumerate((0.8, 0.86))),
    *(make_row("random", 8, seed, accuracy) for seed, accuracy in enumerate((0.5, 0.6))),
    *(make_row("budget", 18, seed, accuracy) for seed, accuracy in enumerate((0.9, 0.91))),
    *(make_row("l0", None, seed, 0.7, heads) for seed, heads in enumerate((5, 9))),
]
LONGER = [make_row("none", None, 0, 0.95, steps=2000), make_row("budget", 8, 0, 0.94, steps=2000)]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_configuration(name):
    method = METHODS[name]
    checked_settings(method.settings_for(8 if method.takes_number else None))


def test_methods_and_data_can_be_given_as_settings(tmp_path):
    method = read_method("cubic:objective=budget objective.schedule.shape=cubic")
    assert method.settings_for(8)[1:] == ["objective.schedule.shape=cubic", "objective.num_heads=8"]
    assert read_data("sst2:data=glue data.name=sst2").settings == ("data=glue", "data.name=sst2")
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.tsv").touch()
    assert f"data.test={tmp_path / 'test.tsv'}" in read_data(str(tmp_path)).settings


@pytest.mark.parametrize(
    ("read", "text", "told"), [(read_method, "newton", "choose from"), (read_data, "nowhere", "train")]
)
def test_unknown_methods_and_missing_data_are_named_in_errors(read, text, told):
    with pytest.raises(ValueError, match=told):
        read(text)


def test_table_has_means_and_spreads_best_first():
    lines = [re.sub(" +", " ", line) for line in table([*LONGER, *ROWS]).splitlines()]
    assert lines[0].startswith("| toy, 1,000 steps | heads |")
    shown = [line.split(" | ")[:3] for line in lines[2 : lines.index("")]]
    assert shown[0] == ["| dense", "72", "91.00 %"]
    assert ["| fixed price 1 (Voita et al. 2019)", "5 to 9", "70.00 %"] in shown
    at_eight = [row for row in shown if row[1] == "8"]
    assert [row[2] for row in at_eight] == ["83.00 %", "55.00 %"]
    assert lines[-4].startswith("| toy, 2,000 steps | heads |")
    assert [line.split(" | ")[2] for line in lines[-2:]] == ["95.00 %", "94.00 %"]


def test_the_page_has_the_means_of_the_example_with_whole_articles():
    rows = records.read(ROOT / "benchmarks" / "results" / "example.jsonl")
    shown = table(rows)
    page = (ROOT / "docs" / "accuracy.md").read_text()
    for heads, mean in ((18, "97.54 %"), (72, "97.65 %")):
        assert re.search(rf"\| {heads} \| {mean} \| .* \| 3 \|", shown)
        assert mean in page
    assert "python -m benchmarks.compare --show --results benchmarks/results/example.jsonl" in page
    assert {line.partition("; ")[2] for line in conditions(rows)} == {"428 steps; seeds 0, 1, 2."}


def test_the_readme_has_the_table_of_the_example():
    rows = records.read(example.RESULTS)
    if rows:
        assert "\n".join(example.table(rows)) in (ROOT / "README.md").read_text()


def test_figure_is_drawn(tmp_path):
    draw([*LONGER, *ROWS], tmp_path / "new" / "figure.png")
    assert (tmp_path / "new" / "figure.png").stat().st_size > 1000


@pytest.mark.runs
def test_runs_are_planned_recorded_and_not_repeated(tmp_path, monkeypatch, capsys):
    results = tmp_path / "results.jsonl"
    data = "toy:" + " ".join(
        setting for setting in make_inputs(tmp_path) if not setting.startswith(("objective", "trainer.max"))
    )
    command = ["compare", "--data", data, "--methods", "random", "--heads", "3", "--seeds", "1"]
    command += ["--steps", "4", "--settings", "trainer.precision=32-true", "--results", str(results)]
    monkeypatch.setattr("sys.argv", command)
    compare.main()
    rows = records.read(results)
    assert [(row["method"], row["num_heads"], row["asked"]) for row in rows] == [("random", 3, 3)]
    assert results.with_suffix(".png").is_file()
    assert "random" in capsys.readouterr().out
    monkeypatch.setattr(compare, "run", lambda *_: pytest.fail("it was run again"))
    compare.main()
    assert len(records.read(results)) == 1


def test_another_number_of_heads_than_requested_is_an_error(monkeypatch):
    def fake(arguments, *, threads):
        folder = next(part for part in arguments if part.startswith("output_dir=")).removeprefix("output_dir=")
        (compare.Path(folder)).mkdir()
        (compare.Path(folder) / "metrics.json").write_text(json.dumps({"num_heads": 9}))
        return ""

    monkeypatch.setattr(runs, "call", fake)
    job = compare.Job(read_data(f"toy:data=files data.train={ROOT}"), METHODS["budget"], 8, 0)
    with pytest.raises(RuntimeError, match="kept 9 heads, not the 8"):
        compare.run(job, {"settings": []})


@pytest.mark.processes
def test_other_runs_stand_still_while_one_times_models(tmp_path):
    moments = tmp_path / "moments.txt"
    works = f"""
import time
with open({str(moments)!r}, "w") as file:
    while not {moments.with_suffix(".end")!r}.exists():
        print(time.monotonic(), file=file, flush=True)
        time.sleep(0.01)
"""
    times = """
import time
from benchmarks.compare.alone import time_alone
from gating.pruning.latency.copies import TimeBudget
time_alone()
with TimeBudget(9).stage(share=0.5):
    start = time.monotonic()
    time.sleep(1.5)
    print(start, time.monotonic())
"""
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(alone.call, ["-c", f"from pathlib import PosixPath{works}"], threads=1)
        begin, end = map(float, alone.call(["-c", times], threads=1).split())
        moments.with_suffix(".end").touch()
        other.result()
    seen = [float(line) for line in moments.read_text().split()]
    assert seen[0] < begin
    assert seen[-1] > end
    # One line may be under way when the signal comes.
    assert not [moment for moment in seen if begin + 0.3 < moment < end]


def test_a_process_that_fails_is_named_with_its_error():
    with pytest.raises(RuntimeError, match=r"(?s)-c raise SystemExit.* failed:\nno such thing"):
        alone.call(["-c", "raise SystemExit('no such thing')"], threads=1)


def test_the_dense_model_is_trained_once_for_itself_and_as_the_teacher(monkeypatch, tmp_path):
    trained = []

    def fake(settings, folder, *, threads):
        trained.append(settings)
        (folder / "compact").mkdir(parents=True)
        (folder / "metrics.json").write_text('{"num_heads": 72}')
        return {"num_heads": 18}

    monkeypatch.setattr(compare, "train", fake)
    monkeypatch.setattr(runs, "train", fake)
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    data, methods = Data("toy", ("data=toy",)), LATENCY_METHODS
    about = {"data": "toy", "method": "none", "asked": None, "seed": 0, "steps": 4}
    dense = compare.run(
        compare.Job(data, methods["none"], None, 0), about | {"settings": ["objective=none"]}, keep=tmp_path
    )
    assert dense["num_heads"] == 72
    assert (tmp_path / "toy-none-None-0-4" / "compact").is_dir()
    settings = methods["both_taught"].settings_for(2)
    compare.run(compare.Job(data, methods["both_taught"], 2, 0), about | {"settings": settings})
    assert trained[0] == ["data=toy", "seed=0", "objective=none"]
    (teacher,) = (tmp_path / "outputs" / "teachers").iterdir()
    assert f"distillation.teacher={teacher / 'compact'}" in trained[1]
    assert len(trained) == 2
