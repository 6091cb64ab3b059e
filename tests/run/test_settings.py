"""Validation of settings by the signatures of their targets."""

import pytest

import gating
from gating.run.settings.check import check_settings, take_arguments
from tests.support.tiny_run import checked_settings

RUN = {"output_dir": "out", "overwrite": False, "seed": 1, "recovery": 0.25}

GROUPS = {"elsewhere", "objective", "trainer", "words"}


def budget(**values):
    return {"objective": {"_target_": "gating.ExactBudget", **values}}


@pytest.mark.parametrize(
    "settings",
    [
        RUN,
        budget(num_heads=18, keep=None),
        budget(num_heads=None, keep=0.25),
        budget(keep=1),
        budget(schedule={"_target_": "gating.BudgetSchedule", "start": 0, "end": 0.5, "shape": "cubic"}),
        {"objective": {"_target_": "gating.FixedPrice", "price": 2}},
        {"elsewhere": {"_target_": "torch.nn.Linear", "nonsense": "is not ours to judge"}},
        {"words": {"no_target": "at all"}},
    ],
)
def test_good_settings_pass(settings):
    check_settings(settings, groups=GROUPS, also={})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (budget(num_heads="many"), "objective.num_heads=many cannot be used: .*integer"),
        (budget(num_heads=2.5), r"objective.num_heads=2\.5 cannot be used"),
        (budget(num_heads="18"), "objective.num_heads=18 cannot be used"),
        (budget(num_heads=4.0), r"objective.num_heads=4\.0 cannot be used: give an integer, such as .*num_heads=4\."),
        ({**RUN, "seed": 1.0}, r"^seed=1\.0 cannot be used: give an integer, such as seed=1\."),
        (budget(num_heads=[1]), r"objective.num_heads=\[1\] cannot be used"),
        (budget(num_heads=True), "objective.num_heads=True cannot be used"),
        (budget(num_heads={"cross": "many"}), "objective.num_heads=.*valid integer"),
        (budget(keep="a quarter"), "objective.keep=a quarter cannot be used"),
        (budget(schedule={"_target_": "gating.BudgetSchedule", "end": "late"}), "objective.schedule.end=late"),
        (budget(schedule={"_target_": "gating.BudgetSchedule", "shape": "square"}), "objective.schedule.shape=square"),
        ({**RUN, "seed": -1}, "^seed=-1 cannot be used"),
        ({**RUN, "seed": "abc"}, "^seed=abc cannot be used"),
        ({**RUN, "recovery": 1}, "^recovery=1 cannot be used"),
        ({**RUN, "overwrite": "perhaps"}, "^overwrite=perhaps cannot be used"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_its_dotted_name(settings, message):
    with pytest.raises(ValueError, match=message):
        check_settings(settings, groups=GROUPS, also={})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (budget(num_head=18), r"no setting objective\.num_head\. Did you mean objective\.num_heads\?"),
        (
            budget(qqq=18),
            r"no setting objective\.qqq\. There are cost, keep, min_per_layer, .*neurons, schedule, uniform",
        ),
        (
            budget(schedule={"_target_": "gating.BudgetSchedule", "begin": 0.1}),
            r"no setting objective\.schedule\.begin",
        ),
    ],
)
def test_an_unknown_setting_is_refused_with_the_known_ones(settings, message):
    with pytest.raises(ValueError, match=message):
        check_settings(settings, groups=GROUPS, also={})


def test_a_missing_setting_is_refused_with_the_way_to_give_it():
    with pytest.raises(ValueError, match=r"objective\.num_heads is needed: add objective\.num_heads=\.\.\."):
        check_settings(budget(num_heads="???"), groups=GROUPS, also={})


def test_a_text_in_place_of_a_callback_is_refused():
    with pytest.raises(ValueError, match=r"^callbacks\.mine=early cannot be used"):
        check_settings({"callbacks": {"mine": "early"}}, groups={"callbacks"}, also={})


def test_a_target_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"_target_=gating\.NoSuchThing does not exist"):
        check_settings({"objective": {"_target_": "gating.NoSuchThing"}}, groups=GROUPS, also={})


def test_settings_of_a_group_may_go_to_another_function_too():
    def other(*, speed: int = 1) -> None:
        pass

    check_settings(budget(num_heads=3, speed=2), groups=GROUPS, also={"objective": [other]})
    with pytest.raises(ValueError, match=r"objective\.speed=fast cannot be used"):
        check_settings(budget(speed="fast"), groups=GROUPS, also={"objective": [other]})


def test_a_speedup_needs_an_objective_with_a_budget():
    with pytest.raises(ValueError, match=r"needs an objective with a budget, .* does not take keep and cost"):
        checked_settings(["objective=l0", "+objective.speedup=2"])


def test_checking_builds_nothing():
    # A budget of zero heads has the right type; whether it fits is for the model to say.
    check_settings(budget(num_heads=0), groups=GROUPS, also={})


def test_arguments_of_a_function_are_taken_out():
    settings = {"price": 2.0, "other": 1}
    assert take_arguments(gating.FixedPrice, settings) == {"price": 2.0}
    assert settings == {"other": 1}
