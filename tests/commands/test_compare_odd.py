"""head-gating compare: folders with odd numbers, and folders and seeds that are given several times."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from gating.run.sweep.records import Job
from gating.run.sweep.results import compare as read
from gating.run.sweep.tradeoff.table import as_plain, print_choice
from tests.support.sweeps import write_run


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    dense = write_run(tmp_path / "dense", "objective=none")
    return [dense, write_run(tmp_path / "half", "objective.num_heads=36", speedup=1.2, macs=80, val_=0.895)]


def plain_of(out: str) -> dict:
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(out, parse_constant=refuse)


# As Python's json reads and writes them; a text, since not all of them are values of Python.
ODD = [
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "null",
        '"abc"',
        "true",
        "[]",
        "[1]",
        "{}",
        "1e308",
        "-1e308",
        "1e999",
        "-1",
        "0",
    ),
    "1" + 400 * "0",
]
NAMES = ["val/accuracy", "test/accuracy", "speedup", "num_heads", "num_neurons", "macs", "macs_before", "threads"]
NAMES += ["num_parameters_before", "latency_ms_before", "machine", "score", "seed", "warnings", "baseline"]
NAMES += ["baseline/val/accuracy", "num_targets/val"]


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> list[Path]:
    place = tmp_path_factory.mktemp("three")
    dense = write_run(place / "dense", "objective=none")
    half = write_run(place / "half", "objective.num_heads=36", speedup=1.2, macs=80, val_=0.895)
    return [dense, half, write_run(place / "odd", "objective.num_heads=9", speedup=1.5, macs=60)]


def shown(folders: list[Path], capsys) -> tuple[str, dict]:
    """Return what is printed about some runs, and their numbers."""
    capsys.readouterr()
    tradeoff = read(folders, max_drop=1.0)
    print_choice(tradeoff, setting="--max-drop")
    return capsys.readouterr().out, plain_of(json.dumps(as_plain(tradeoff, setting="--max-drop")))


@pytest.mark.runs
@pytest.mark.parametrize("name", NAMES)
def test_no_value_in_the_numbers_of_a_run_ends_in_a_traceback(name, three, capsys):
    path = three[-1] / "metrics.json"
    before = path.read_text()
    stored = json.loads(before) | {name: "ODD"}
    for value in ODD:
        path.write_text(json.dumps(stored).replace('"ODD"', value))
        out, plain = shown(three, capsys)
        for wrong in ("infx", "inf %", "nanx", "nan %"):
            assert wrong not in out
        (row,) = [run for run in plain["runs"] if run["budget"] == "9 heads"]
        if name == "val/accuracy" and value not in ("-1", "0"):
            assert not row["recommended"]
            assert plain["runs"][-1] == row
            assert "not finite" in out
            assert "Recommended: 36 heads" in out
        if name == "speedup" and value != "1e308":
            assert row["speedup"] is None
    path.write_text(before)


def test_a_number_that_python_does_not_read_is_damage(three, compare):
    path = three[-1] / "metrics.json"
    before = path.read_text()
    path.write_text(before.replace("72", "1" + 5000 * "0"))
    with pytest.raises(SystemExit, match="does not have the numbers of a run"):
        compare(*three)
    path.write_text(before)


DAMAGED = ["", "[]", "null", "3", "{", "\x00", '{"metric": 3}', '{"metric": null}', "[" * 99999]


@pytest.mark.parametrize("scale", ["abc", None, -1, 0, True])
def test_a_score_of_no_scale_is_refused(scale, three, compare):
    path = three[-1] / "metrics.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"score": {"scale": scale}}))
    with pytest.raises(SystemExit, match=rf"metrics\.json has score\.scale={scale}, which is no factor"):
        compare(*three)
    path.write_text(before)


def test_a_failed_job_and_one_whose_run_is_gone_are_listed_and_not_compared(compare, pair, tmp_path):
    jobs = [Job(0, [], "dense"), Job(1, [], "half", "no such seed"), Job(2, [], "gone")]
    for job in jobs:
        (tmp_path / ".jobs").mkdir(exist_ok=True)
        (tmp_path / ".jobs" / f"{job.number}.json").write_text(json.dumps(asdict(job)))
    plain = plain_of(compare(tmp_path, "--json"))
    assert [run["budget"] for run in plain["runs"]] == ["dense"]
    assert plain["failed"][str(pair[1])] == "no such seed"
    assert "its folder is gone" in plain["failed"][str(tmp_path / "gone")]


def test_damaged_numbers_are_refused_and_those_of_a_sweep_are_listed(compare, pair, tmp_path):
    odd = write_run(tmp_path / "odd", "objective.num_heads=9")
    for content in DAMAGED:
        (odd / "metrics.json").write_text(content)
        with pytest.raises(SystemExit, match=r"odd.metrics\.json does not have the numbers of a run"):
            compare(*pair, odd)
    plain = plain_of(compare(tmp_path, "--json"))
    assert [run["budget"] for run in plain["runs"]] == ["dense", "36 heads"]
    assert "does not have the numbers of a run" in plain["failed"][str(odd)]
    (odd / "metrics.json").unlink()
    (odd / "metrics.json").mkdir()
    assert plain_of(compare(tmp_path, "--json"))["failed"] == {str(odd): "not finished"}


SETTINGS = {
    "seed": ["abc", None, 1.5, [1], {"a": 1}, True, 10**30, -3, float("nan")],
    "gates": [None, "abc", [], 3, {"units": None}, {"units": [1, "heads"]}, {"units": {"a": 1}}],
    "objective": [
        {},
        {"_target_": None},
        {"_target_": ["x"], "num_heads": [1]},
        {"num_heads": "NaN", "keep": {"a": "b"}},
    ],
    "task": [{"_target_": ["x"]}, {}],
    "trainer": [{}, {"limit_val_batches": [1]}],
    "recovery": [None, "x", float("inf")],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_no_setting_of_a_run_ends_in_a_traceback(name, three, capsys):
    path = three[-1] / "config.yaml"
    before = path.read_text()
    settings = yaml.safe_load(before)
    for value in SETTINGS[name]:
        path.write_text(yaml.safe_dump({**settings, name: value}))
        out, _ = shown(three, capsys)
        if name == "seed" and type(value) is not int:
            assert f"{three[-1]} has seed={value}, which is no whole number" in out
    path.write_text(before)


def test_one_folder_by_several_names_counts_once_and_is_said(compare, pair, tmp_path, monkeypatch):
    dense, half = pair
    (half / "compact").mkdir()
    (tmp_path / "link").symlink_to(half)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model").symlink_to(half / "compact")
    monkeypatch.chdir(tmp_path)
    names = ["half", half, "half/", "./half", tmp_path / "link", "half/compact", "link/compact/", "elsewhere/model"]
    names += [os.path.relpath(half, tmp_path / "..") and f"../{tmp_path.name}/half"]
    plain = plain_of(compare(dense, *names, "--json"))
    assert [run["folders"] for run in plain["runs"]] == [[str(dense)], ["half"]]
    assert plain["runs"][1]["validation_std"] is None
    out = compare(dense, *names)
    assert f"half is given {len(names)} times (also as {half}" in out
    assert "means over seeds" not in out
    assert "counts once" not in compare(dense, half)
    assert "counts once" not in compare(tmp_path / "dense", half)


def test_a_sweep_and_its_run_count_once(compare, pair, tmp_path):
    plain = plain_of(compare(tmp_path, pair[1], tmp_path / "dense" / "..", "--json"))
    assert [len(run["folders"]) for run in plain["runs"]] == [1, 1]
    assert len([line for line in plain["conclusion"] if "counts once" in line]) == 2


def test_runs_of_one_seed_and_copies_are_one_seed(compare, pair, tmp_path):
    dense, half = pair
    shutil.copytree(half, tmp_path / "copy")
    again = write_run(tmp_path / "again", "objective.num_heads=36", speedup=1.2, macs=80, val_=0.885)
    plain = plain_of(compare(dense, half, tmp_path / "copy", again, "--json"))
    (row,) = [run for run in plain["runs"] if not run["dense"]]
    assert (row["seeds"], row["validation_std"]) == ([0, 0, 0], None)
    said = f"{half}, {tmp_path / 'copy'} and {again} have the same settings and the same seed: together they count as"
    assert any(said in line for line in plain["conclusion"])
    other = write_run(tmp_path / "other", "objective.num_heads=36", "seed=1", speedup=1.2, macs=80, val_=0.885)
    two = plain_of(compare(dense, half, other, "--json"))["runs"][1]
    four = plain_of(compare(dense, half, tmp_path / "copy", other, "--json"))["runs"][1]
    assert (two["validation"], two["validation_std"]) == (four["validation"], four["validation_std"])


def test_runs_without_a_baseline_are_judged_by_that_of_the_others(compare, tmp_path):
    known = {"baseline": "majority class", "baseline/val/accuracy": 0.9, "num_targets/val": 100}
    write_run(tmp_path / "dense", "objective=none", **known)
    write_run(tmp_path / "half", "objective.num_heads=36", speedup=1.2, macs=80)
    out = compare(tmp_path)
    assert (
        "No run is recommended: none is better than the baseline, majority class with a validation accuracy of" in out
    )
    assert "equal to" not in out
