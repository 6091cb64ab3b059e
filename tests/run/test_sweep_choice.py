"""The choice among runs: front, recommendation, table and picture, from plain numbers."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gating.errors import InputError
from gating.run.sweep.choice import Choice, as_json, draw_choice, explain_choice, print_choice
from gating.run.sweep.results import FinishedRun

PERPLEXITY = {"scale": 1, "unit": "", "higher_is_better": False}
NUMBERS = {"num_heads": 4, "num_neurons": 64, "macs_before": 100, "machine": "a CPU", "threads": 1}


def run(name: str, speedup: float | None, validation: float | None, *, seed: int = 0, **others) -> FinishedRun:
    """Return a run of a budget, with settings and numbers in place of its own."""
    objective = {"_target_": "gating.NoObjective"} if name == "dense" else {"keep": name}
    trainer = {"max_steps": 60, **others.pop("trainer", {})}
    settings = {
        "task": {"sample_seed": seed},
        "data": others.pop("data", {}),
        "trainer": trainer,
        "objective": objective,
        "seed": seed,
    }
    numbers = {**NUMBERS, "metric": "accuracy", "macs": 100 / (speedup or 1), "speedup": speedup, **others}
    numbers |= {f"val/{numbers['metric']}": validation, f"test/{numbers['metric']}": others.get("test", 0.5)}
    return FinishedRun(f"{name}-{seed}", settings, numbers)


RUNS = [
    run("dense", 1.0, 0.913, test=0.9),
    run("36", 1.2, 0.911, test=0.8),
    run("18", 1.4, 0.903, test=0.7),
    run("20", 1.35, 0.901, test=0.99),
    run("9", 1.6, 0.88, test=0.99),
]


def choose(runs, max_drop: float = 1.0, **others) -> Choice:
    return Choice(runs, max_drop=max_drop, **others)


def budgets(candidates) -> list[str]:
    return [candidate.name.removeprefix("keep=") for candidate in candidates]


def chosen(choice: Choice) -> str | None:
    return choice.chosen and choice.chosen.name.removeprefix("keep=")


def text_of(choice: Choice) -> str:
    return "\n".join(explain_choice(choice))


def shown(choice: Choice, capsys) -> str:
    """Draw, write and print a choice; return what is printed."""
    draw_choice(choice).canvas.draw()
    as_json(choice, failed={})
    capsys.readouterr()
    print_choice(choice)
    return capsys.readouterr().out


def test_the_fastest_within_the_limit_is_chosen_and_the_front_has_no_exceeded_run():
    choice = choose(RUNS)
    assert chosen(choice) == "18"
    assert budgets(choice.front) == ["dense", "36", "18", "9"]
    assert choice.drop(choice.chosen) == pytest.approx(1.0)
    assert "Recommended: keep=18, in 18-0, 1.40x as fast" in text_of(choice)
    assert "1.00 points below the dense run's 91.30 %" in text_of(choice)
    assert choose(RUNS, 0.1).chosen is None
    assert "No run is recommended" in text_of(choose(RUNS, 0.1))


def test_test_scores_change_nothing_but_what_is_shown():
    other = [run._replace(numbers=run.numbers | {"test/accuracy": 1 - run.numbers["test/accuracy"]}) for run in RUNS]
    first, second = choose(RUNS), choose(other)
    assert chosen(first) == chosen(second)
    assert budgets(first.front) == budgets(second.front)
    assert "on test data it has 70.00 %, the dense run 90.00 %" in text_of(first)


def test_lower_is_better_for_perplexity():
    pairs = {"dense": (1, 20.0), "a": (1.2, 20.9), "b": (1.5, 21.2), "c": (1.1, 19.5)}
    choice = choose([run(name, *pair, metric="perplexity", score=PERPLEXITY) for name, pair in pairs.items()])
    assert chosen(choice) == "a"
    assert budgets(choice.front) == ["c", "a", "b"]
    assert "0.90 above the dense run's 20.00" in text_of(choice)


def test_a_run_that_is_not_faster_is_not_recommended():
    assert choose([run("dense", 1, 0.9), run("a", 0.97, 0.95)]).chosen is None


def test_runs_of_other_steps_are_neither_recommended_nor_on_the_front_and_the_difference_is_named():
    """A dense run of 60 steps was once "beaten by 75 points" by one of 400."""
    choice = choose([run("dense", 1, 0.2), run("a", 2, 0.95, trainer={"max_steps": 400})])
    assert choice.chosen is None
    assert budgets(choice.front) == ["dense"]
    assert "keep=a cannot be compared: trainer.max_steps=400 (dense: 60)" in text_of(choice)
    equal = [run("dense", 1, 0.9, trainer={"max_steps": 400}), run("a", 2, 0.95, trainer={"max_steps": 400})]
    assert chosen(choose([*equal, run("b", 3, 0.95)])) == "a trainer.max_steps=400"


@pytest.mark.parametrize(
    ("difference", "named"),
    [
        ({"data": {"train": "other.csv"}}, "data.train"),
        ({"data": {"batch_size": 8}, "trainer": {"max_steps": -1}}, "data.batch_size"),
        ({"trainer": {"limit_val_batches": 3}}, "trainer.limit_val_batches"),
        ({"num_parameters_before": 50}, "num_parameters_before"),
        ({"num_examples/val": 64}, "num_examples/val"),
        ({"num_targets/test": 400}, "num_targets/test"),
        ({"seed": 1}, "seed=1 (dense: 0)"),
    ],
)
def test_runs_of_other_data_models_or_seeds_of_data_are_not_compared(difference, named):
    alike = {"data": {"train": "a.csv", "batch_size": 4}, "num_examples/val": 16}
    alike["trainer"] = {"max_steps": -1} if named == "data.batch_size" else {}
    choice = choose([run("dense", 1, 0.9, **alike), run("a", 2, 0.9, **{**alike, **difference})])
    assert choice.chosen is None
    assert named in text_of(choice)


def test_seeds_may_differ_where_they_draw_no_data(tmp_path):
    """Equal examples in the records of all runs tell that the data do not depend on the seed."""
    runs = [run("dense", 1, 0.9), run("a", 2, 0.9, seed=1), run("a", 2, 0.9, seed=2)]
    placed = [run._replace(folder=str(tmp_path / run.folder)) for run in runs]
    for one in runs:
        (tmp_path / one.folder).mkdir()
        record = {
            "classes": None,
            "folders": {},
            "examples": {split: {"labels": "same"} for split in ("train", "validation")},
        }
        (tmp_path / one.folder / "inputs.json").write_text(json.dumps(record))
    assert chosen(choose(placed)) == "a"
    record["examples"]["validation"]["labels"] = "other"
    (tmp_path / runs[-1].folder / "inputs.json").write_text(json.dumps(record))
    assert choose(placed).chosen is None


def test_data_that_each_seed_draws_are_compared_as_a_set(tmp_path):
    runs = [run(name, speed, 0.9, seed=seed) for name, speed in (("dense", 1), ("a", 2)) for seed in (0, 1)]
    for one in runs:
        (tmp_path / one.folder).mkdir()
        record = {
            "classes": None,
            "folders": {},
            "examples": {"validation": {"labels": f"of seed {one.settings['seed']}"}},
        }
        (tmp_path / one.folder / "inputs.json").write_text(json.dumps(record))
    placed = [one._replace(folder=str(tmp_path / one.folder)) for one in runs]
    assert chosen(choose(placed)) == "a"
    (tmp_path / "a-1" / "inputs.json").write_text((tmp_path / "a-0" / "inputs.json").read_text())
    assert "its validation examples differ from those of dense." in text_of(choose(placed))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_files_of_one_name_with_other_examples_are_not_compared_and_no_digest_is_shown(split, tmp_path):
    """Folds are files of one name in several folders."""
    runs = [run("dense", 1, 0.9), run("a", 2, 0.9), run("b", 2, 0.9)]
    for one in runs:
        (tmp_path / one.folder).mkdir()
        record = {
            "classes": None,
            "folders": {},
            "examples": {"test": {"text": "00af"}, split: {"text": "ff01" if one is runs[1] else "00af"}},
        }
        (tmp_path / one.folder / "inputs.json").write_text(json.dumps(record))
    choice = choose([one._replace(folder=str(tmp_path / one.folder)) for one in runs])
    assert chosen(choice) == "b"
    assert f"keep=a cannot be compared: its {split} examples" in text_of(choice)
    assert "ff01" not in text_of(choice)


def test_a_speed_up_within_the_noise_is_no_difference(capsys):
    choice = choose([run("dense", 1, 0.9), run("a", 1.04, 0.9, speedup_error=0.03)])
    assert choice.chosen is None
    assert "no difference" in shown(choice, capsys)
    assert chosen(choose([run("dense", 1, 0.9), run("a", 1.04, 0.9, speedup_error=0.01)])) == "a"


@pytest.mark.parametrize("task", [{"teacher": "user/other"}, {"metrics": {"agreement": {"nearest": 5}}}])
def test_a_metric_of_another_teacher_or_definition_is_not_compared(task):
    runs = [run(name, speed, 0.9, metric="agreement") for name, speed in (("dense", 1), ("a", 2))]
    other = runs[1]._replace(settings={**runs[1].settings, "task": task})
    assert chosen(choose(runs)) == "a"
    assert choose([runs[0], other]).chosen is None


def test_a_warning_of_several_runs_stands_once_with_its_first_words():
    warned = {"warnings": ["The val/accuracy is low: train longer."]}
    text = text_of(choose([run(name, 1, 0.9, **warned) for name in ("dense", "a")]))
    assert text.endswith("\n!: The val/accuracy is low (dense-0, a-0).")


@pytest.mark.parametrize("other", [{"metric": "f1"}, {"task": {"_target_": "gating.tasks.Regression"}}])
def test_runs_of_other_tasks_or_metrics_are_refused(other):
    second = run("a", 2, 0.9, **({"metric": "f1"} if "metric" in other else {}))
    second = second._replace(settings={**second.settings, **({} if "metric" in other else other)})
    with pytest.raises(InputError, match="different tasks or metrics"):
        choose([RUNS[0], second])


def test_seeds_of_a_budget_are_one_candidate_with_mean_and_spread(capsys):
    runs = [run("dense", 1, 0.90 + 0.01 * seed, seed=seed) for seed in (2, 0, 1)]
    runs += [run("a", 1.5, 0.89 + 0.01 * seed, seed=seed) for seed in (0, 1, 2)]
    choice = choose(runs)
    assert budgets(choice.candidates) == ["dense", "a"]
    assert choice.chosen.numbers["validation"] == pytest.approx(0.90)
    assert choice.chosen.numbers["validation_std"] == pytest.approx(0.01)
    assert "with a mean validation accuracy of 90.00 %, 1.00 points below" in text_of(choice)
    assert "The best of its 3 runs is in a-2 (91.00 %)." in text_of(choice)
    assert "a-2 (+2)" in shown(choice, capsys)
    # A seed that is repeated tells nothing new.
    again = choose([*runs, *[runs[-1]] * 5])
    assert again.chosen.numbers == pytest.approx(choice.chosen.numbers, nan_ok=True)
    same = [run("dense", 1, 0.9), *[run("a", 2, 0.9)] * 2]
    assert math.isnan(choose(same).chosen.numbers["validation_std"])


@pytest.mark.parametrize("other", [{"speedup": None}, {"machine": "a GPU"}, {"latency_batch": "8 x 128"}])
def test_runs_without_comparable_latencies_are_compared_by_work(other):
    runs = [run("dense", 1, 0.9), run("a", 2, 0.9), run("b", 3, 0.9)]
    choice = choose([*runs[:2], runs[2]._replace(numbers=runs[2].numbers | {"macs": 80} | other)])
    assert (choice.axis, chosen(choice)) == ("work", "a")
    assert "2.00x less work" in text_of(choice)


ODD = st.one_of(st.none(), st.floats(), st.floats(0, 1))
ROWS = st.lists(
    st.builds(
        run,
        st.sampled_from(["dense", "a", "b $x_$ [/red]"]),
        ODD,
        ODD,
        seed=st.sampled_from([0, 1]),
        test=ODD,
        macs=st.sampled_from([None, 50]),
    ),
    min_size=1,
    max_size=6,
)


@given(ROWS, st.floats(0, 100))
def test_no_numbers_end_a_choice_and_only_finite_ones_are_chosen(runs, max_drop):
    choice = choose(runs, max_drop)
    assert "NaN" not in as_json(choice, failed={})
    assert "nan" not in text_of(choice)
    if choice.chosen is not None:
        assert math.isfinite(choice.chosen.loss)
        assert choice.speed(choice.chosen) > 1


@given(st.lists(st.tuples(st.floats(0.5, 4.0), st.floats(0.1, 1.0)), min_size=1, max_size=8), st.floats(0, 100))
def test_no_qualifying_run_is_faster_than_the_chosen_one_and_each_run_is_reached_by_the_front(pairs, max_drop):
    runs = [run("dense", 1.0, 0.8), *(run(str(number), *pair) for number, pair in enumerate(pairs))]
    choice = choose(runs, max_drop)
    within = [speed for speed, score in pairs if 100 * (0.8 - score) <= max_drop and speed >= 1.005]  # Less is noise.
    assert (choice.chosen is None) <= (not within)
    if choice.chosen is not None:
        assert choice.drop(choice.chosen) <= max_drop + 1e-8
        assert all(speed <= choice.speed(choice.chosen) for speed in within)
    for candidate in choice.candidates:
        assert any(
            other.loss <= candidate.loss and choice.speed(other) >= choice.speed(candidate) for other in choice.front
        )


def majority(name: str, validation: float, *, seed: int = 0, number: int = 30, speedup: float = 1.5) -> FinishedRun:
    baseline = {"baseline": "majority class", "baseline/val/accuracy": 19 / 30, "baseline/test/accuracy": 0.6}
    return run(name, speedup, validation, seed=seed, **baseline, **{"num_targets/val": number})


def test_runs_that_score_the_majority_class_get_no_recommendation(capsys):
    choice = choose([majority(name, 19 / 30, seed=seed) for name in ("dense", "a", "b") for seed in (0, 1, 2)])
    text = shown(choice, capsys)
    assert choice.chosen is None
    assert "better than majority class (63.33 %) beyond chance" in text
    (row,) = [line for line in text.splitlines() if "majority class" in line and "│" in line]
    assert [cell.strip() for cell in row.split("│")[-4:-2]] == ["63.33 %", "60.00 %"]


def test_chance_is_that_of_labels_and_of_seeds():
    for number, expected in ((30, None), (100_000, "a")):
        runs = [majority("dense", 0.65, number=number), majority("a", 20 / 30, number=number)]
        assert chosen(choose(runs)) == expected
    scattered = [majority("a", value, seed=seed, number=10**6) for seed, value in enumerate((0.5, 0.8, 0.65))]
    dense = [majority("dense", 0.7, seed=seed, number=10**6) for seed in range(3)]
    assert choose([*dense, *scattered], 50).chosen is None


def test_the_fastest_that_has_learned_is_recommended():
    runs = [majority("dense", 0.9), majority("few", 19 / 30, speedup=4), majority("half", 0.9, speedup=2)]
    assert chosen(choose(runs, 50)) == "half"


@pytest.mark.parametrize("dense", [None, 0.9])
def test_scores_that_are_not_finite_are_last_and_never_recommended(dense, capsys):
    choice = choose([run("dense", 1, dense), run("odd", 3, None), run("a", 1.2, 0.9), run("odd", 3, 0.95, seed=1)])
    shown(choice, capsys)
    assert chosen(choice) == (dense and "a")
    assert choice.candidates[-1].name == "keep=odd"


def test_the_best_trial_of_a_search_takes_the_place_of_a_recommendation():
    text = text_of(choose(RUNS[1:], search="Best trial: lr=1."))
    assert text.startswith("Best trial: lr=1.")
    assert "recommended" not in text
