"""The resume command is printed only if there is a checkpoint."""

import pytest

import train
from tests.support.interruptions import at_batch, end_of
from tests.support.tiny_run import compose_settings

pytestmark = pytest.mark.runs

GO_ON = "Resume the run: python train.py resume="


@pytest.fixture(scope="module")
def inputs(inputs: list[str]) -> list[str]:
    settings = ["trainer.max_steps=4", "callbacks.checkpoint.every_n_steps=1"]
    return [*inputs, *settings]


def fail() -> None:
    raise OSError(5, "Input/output error", "disk")


# Batches are counted over all phases: with a teacher 2 of the dense model, 1 of the search, 1 of the recovery.
SAID = {
    "in the first step": ([], 1, False),
    "in the second step": ([], 2, True),
    "in recovery, without checkpoints": (["callbacks.checkpoint=null"], 4, True),  # The removal is kept.
    "in the second step of the dense model": (["distillation=logits"], 2, True),
    "in the first step after the dense model": (["distillation=logits"], 3, True),
    "with checkpoints elsewhere": (["paths.checkpoints=PLACE/far"], 2, True),
}


@pytest.mark.parametrize("case", SAID)
def test_the_resume_command_is_printed_from_the_first_checkpoint_on(case, inputs, tmp_path, capsys):
    settings, batch, is_said = SAID[case]
    with at_batch(batch, fail):
        assert end_of(tmp_path / "run", inputs, *(line.replace("PLACE", str(tmp_path)) for line in settings)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: [Errno 5] Input/output error: 'disk'\n")
    assert error.count(f"{GO_ON}{tmp_path}/run\n") == is_said
    assert GO_ON in error or not is_said


@pytest.mark.parametrize("error", [RuntimeError("a fault"), OSError(28, "No space left on device", "disk")])
def test_a_resumed_run_can_be_resumed_after_an_error_before_its_first_step(error, inputs, tmp_path, capsys):
    with at_batch(3, fail):
        end_of(tmp_path / "run", inputs)
    capsys.readouterr()

    def go_on() -> None:
        raise error

    overrides = [f"resume={tmp_path}/run"]
    with at_batch(1, go_on), pytest.raises((SystemExit, RuntimeError)):
        train.guarded_run(compose_settings(overrides), overrides)
    assert capsys.readouterr().err.count(f"{GO_ON}{tmp_path}/run\n") == 1
