"""Trainers with objectives, criteria and models that were used before."""

import pytest
from transformers import TrainerCallback

import gating
from gating.errors import OperationError
from tests.integrations.conftest import make_classifier, make_trainer, weights_of

OBJECTIVES = {
    "exact": lambda: gating.ExactBudget(num_heads=5),
    "lagrangian": lambda: gating.Lagrangian(num_heads=5),
    "importance": lambda: gating.IterativePruning(gating.Importance(), num_heads=5),
}


@pytest.mark.runs
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_second_trainer_chooses_as_one_with_a_new_objective(tmp_path, assert_same, name):
    make, convergence = OBJECTIVES[name], gating.Convergence(patience=1, max_undecided=1.0)
    objective = make()
    first = make_trainer(tmp_path, model=make_classifier(7), objective=objective, convergence=convergence)
    first.train()
    used = make_trainer(tmp_path, objective=objective, convergence=convergence)
    used.train()
    new = make_trainer(tmp_path, objective=make(), convergence=gating.Convergence(patience=1, max_undecided=1.0))
    new.train()
    assert used.state.global_step == new.state.global_step
    assert_same(weights_of(used), weights_of(new))
    assert used.finalize().kept_heads == new.finalize().kept_heads


@pytest.mark.runs
def test_two_trainers_at_once_need_an_objective_each(tmp_path):
    objective = gating.ExactBudget(num_heads=5)
    first, second = make_trainer(tmp_path, objective=objective), make_trainer(tmp_path, objective=objective)
    with pytest.raises(OperationError, match="make a new one for each search"):
        first.train()
    second.train()


@pytest.mark.runs
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_training_that_was_stopped_and_begins_again_has_a_new_search(tmp_path, name):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = control.should_training_stop or state.global_step == 9

    trainer = make_trainer(tmp_path, objective=OBJECTIVES[name]())
    stop = Stop()
    trainer.add_callback(stop)
    trainer.train()
    trainer.remove_callback(stop)
    trainer.train()
    history = [row["gates/open"] for row in trainer.state.log_history if "gates/open" in row]
    assert len(history) == 6
    if name in ("exact", "importance"):
        assert history[0] == 12  # All gates are open again.
    assert trainer.finalize().num_heads == 5
