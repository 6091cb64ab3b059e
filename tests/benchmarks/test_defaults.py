"""The effect of each default: a balanced design of settings, and differences computed by hand."""

from itertools import combinations

from benchmarks.compare.methods import Data
from benchmarks.defaults import FACTORS, SIZES, design, effects, plan, table


def rows_of(scores: list[float], size: str = "18 heads", seed: int = 0) -> list[dict]:
    return [
        {
            "data": "sick",
            "size": size,
            "seed": seed,
            "steps": 600,
            "levels": levels,
            "metric": "accuracy",
            "test/accuracy": score,
        }
        for levels, score in zip(design(), scores, strict=True)
    ]


def test_each_pair_of_settings_has_all_combinations_equally_often():
    for first, second in combinations(FACTORS, 2):
        combined = [(levels[first], levels[second]) for levels in design()]
        assert sorted(combined) == sorted([(False, False), (False, True), (True, False), (True, True)] * 2)


def test_neighbouring_sets_of_eight_have_swapped_levels():
    data = [Data("a", ("data=a",)), Data("b", ("data=b",))]
    jobs = [about for _, about in plan(data, list(SIZES), [0, 1], 600)]
    assert len(jobs) == 8 * len(SIZES) * 2 * 2
    first, second = jobs[:8], jobs[8:16]
    for one, other in zip(first, second, strict=True):
        assert one["levels"] == {name: not level for name, level in other["levels"].items()}
        assert "objective.num_heads=18" in one["settings"]
    assert len({(row["data"], row["seed"], *row["settings"]) for row in jobs}) == len(jobs)


def test_effects_are_those_that_the_scores_were_made_with():
    made = {"teacher": 0.02, "late": 0.0, "recovery": -0.01, "decay": 0.004, "early": 0.0, "last": 0.0}
    scores = [0.8 + sum(made[name] * level for name, level in levels.items()) for levels in design()]
    found = effects([*rows_of(scores), *rows_of(scores, seed=1)])["18 heads", "sick"]
    assert {name: round(each.mean, 6) for name, each in found.items()} == {
        name: round(100 * effect, 6) for name, effect in made.items()
    }
    assert all(len(each.values) == 2 for each in found.values())


def test_a_set_with_missing_runs_is_left_out():
    scores = [0.8, 0.81, 0.82, 0.83, 0.84, 0.85, 0.86, 0.87]
    assert effects(rows_of(scores)[:-1]) == {}
    shown = table([*rows_of(scores), *rows_of(scores, size="both, 40 %")[:-1]])
    assert "| change | sick, 18 heads | mean |" in shown
    assert "both, 40 %" not in shown
