"""Timing, records and cases of the benchmarks, and other libraries on a tiny model."""

import functools
import json
import os
import signal
import sys
import time

import pytest
import torch

from benchmarks import records
from benchmarks.damage.__main__ import SUBJECTS, run_cases
from benchmarks.damage.damages import DAMAGES
from benchmarks.damage.outcome import load_outcome
from benchmarks.measuring import interleave, machine, ratio
from benchmarks.rivals import __main__ as rivals
from benchmarks.rivals import environments
from benchmarks.rivals.cases import CASES

PRUNER, GRAPH = "torch-pruning, pruner", "torch-pruning, graph"


def test_calls_take_turns_and_stop_with_the_budget():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = interleave(functions, rounds=4, warm_up=1, budget_s=60, prepare=lambda: calls.append("-"))
    assert "".join(calls) == "-a-b" + "-a-b-b-a" * 2
    assert [len(its) for its in times.values()] == [4, 4]
    assert len(interleave(functions, rounds=100, warm_up=0, budget_s=0)["a"]) == 3


def test_ratios_are_taken_round_by_round():
    times = {"a": [2.0, 4.0, 60.0], "b": [1.0, 2.0, 20.0]}
    assert ratio(times, "a", "b") == (2.0, 2.0, 2.5)


def test_records_are_read_back_and_make_a_table(tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    assert records.read(path) == []
    records.append(path, {"name": "x|y", "ratio": (1.0, 0.9, 1.1), **machine()})
    records.append(path, {"name": "z", "works": True})
    rows = records.read(path)
    assert {"cpu", "threads", "torch", "date", "commit"} <= set(rows[0])
    table = records.markdown(rows, {"name": "Name", "ratio": "Ratio", "works": "works"}).splitlines()
    assert table[0] == "| Name | Ratio | works |"
    assert table[2:] == ["| x\\|y | 1.00 (0.9-1.10) | - |", "| z | - | yes |"]


def test_cases_remove_the_heads_in_their_names():
    counts = {case: per_layer(12, 12) for case, per_layer in CASES.items()}
    assert set(counts["half of every layer"]) == {6}
    assert 0 < min(counts["uneven"]) < max(counts["uneven"]) < 12
    assert counts["one layer emptied"].count(12) == 1
    assert 144 - sum(counts["an eighth left"]) == 18
    assert max(counts["an eighth left"]) < 12


@pytest.fixture(scope="module")
def run_case(tmp_path_factory):
    """Run one case with the installed libraries; return its rows by method."""

    @functools.cache
    def run(case: str) -> dict[str, dict]:
        output = tmp_path_factory.mktemp("rivals") / "rivals.jsonl"
        rivals.main(["--quick", "--no-install", "--models", "bert-base", "--cases", case, "--output", str(output)])
        return {row["method"]: row for row in records.read(output)}

    return run


def row_of(rows: dict[str, dict], method: str) -> dict:
    if method not in rows:
        pytest.skip(f"{method.partition(',')[0]} is not installed here: python -m benchmarks.rivals installs it")
    return rows[method]


CASE_PARAMETERS = ["one layer emptied", pytest.param("uneven", marks=pytest.mark.slow)]


@pytest.mark.runs
@pytest.mark.parametrize("case", CASE_PARAMETERS)
def test_ours_removes_the_heads_and_reloads(run_case, case):
    row = run_case(case)[rivals.OURS]
    assert row["works"]
    assert row["heads"] == row["heads_asked"]
    assert row["effect_of_mask"] > 1000 * row["difference"]
    assert (row["reloads"], row["from_pretrained"]) == ("yes", "yes")
    assert row["latency_vs_ours"] == [1.0, 1.0, 1.0]
    assert row["seconds"] > 0


@pytest.mark.runs
@pytest.mark.parametrize("case", CASE_PARAMETERS)
def test_torch_prunings_graph_removes_the_heads_and_reloads_as_a_pickle(run_case, case):
    row = row_of(run_case(case), GRAPH)
    assert row["works"]
    assert row["reloads"] == "yes"
    assert row["from_pretrained"] != "yes"


@pytest.mark.runs
@pytest.mark.parametrize("case", CASE_PARAMETERS)
def test_torch_prunings_pruner_leaves_a_layer_whole_that_was_to_be_emptied(run_case, case):
    row = row_of(run_case(case), PRUNER)
    assert row["works"] == (case == "uneven")
    assert ("silently" in row.get("error", "")) == (case == "one layer emptied")


@pytest.mark.runs
@pytest.mark.parametrize("case", CASE_PARAMETERS)
def test_transformers4_cannot_empty_a_layer(run_case, case):
    row = row_of(run_case(case), rivals.TRANSFORMERS4)
    assert row["dense_difference"] < 1e-5
    if case == "uneven":
        assert row["works"]
        assert row["reloads"] == "yes"
    else:
        assert "reshape" in row["error"]


def test_packages_that_cannot_be_installed_are_reported_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "CACHE", tmp_path)
    with pytest.raises(environments.Unavailable, match="transformers 4 is left out"):
        environments.transformers4_python(None, install=False)
    with pytest.raises(environments.Unavailable, match=r"^a thing is left out: pip cannot .*\)\.$"):
        environments._pip("a thing", sys.executable, ["--no-index", "--target", str(tmp_path), "no-such-package"])


# Forking makes a case cheap; nothing in the child waits for a thread of this process.
@pytest.mark.runs
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_damaged_folders_give_the_model_that_was_saved_or_one_sentence():
    rows = list(run_cases(range(2 * len(DAMAGES)), remote=False))
    assert {row["damage"] for row in rows} == set(DAMAGES)
    assert {row["family"] for row in rows} == {family for family, *_ in SUBJECTS}
    assert [row for row in rows if row["outcome"] == "FAIL"] == []
    assert sum(row["outcome"] == "sentence" for row in rows) > 0.7 * len(rows)


@pytest.mark.runs
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("load", "why"),
    [
        (lambda folder: time.sleep(60), "no answer after 2 s"),
        (lambda folder: os.kill(os.getpid(), signal.SIGKILL), "the process ended with status"),
        (lambda folder: torch.empty(10**10), "can't allocate memory"),
        (lambda folder: {}["key"], "KeyError"),
        (lambda folder: json.loads("{"), "JSONDecodeError"),
        (lambda folder: torch.ones(3), "another model"),
    ],
)
def test_the_damage_benchmark_detects_failures(tmp_path, load, why):
    found = load_outcome(load, tmp_path, lambda model: [model], [torch.ones(2)], sentence=True, timeout_s=2)
    assert found["outcome"] == "FAIL"
    assert why in found["why"]
