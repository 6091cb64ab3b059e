"""Interrupted runs resume to the bit."""

import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch

import train
from gating.pruning.latency_costs import LatencyCosts
from gating.report.summary import Summary
from gating.run import execute, measured_budget, phases
from gating.run.folder import is_finished
from gating.training.module import FineTuning
from tests.support.interruptions import Interrupted, at_batch, end_of, interrupt, run_in, steps_of_checkpoints
from tests.support.outcome import Outcome
from tests.support.tiny_run import compose_settings

pytestmark = pytest.mark.runs

EACH_STEP = "callbacks.checkpoint.every_n_steps=1"


def assert_same_end(folder: Path, whole: Path) -> None:
    comparison = Outcome.of(whole).compare(Outcome.of(folder))
    assert all(comparison.values()), comparison


def interrupt_again_and_again(folder: Path, inputs: list[str], *settings: str, at: int) -> int:
    """Interrupt a run at the same batch after each start until it finishes; return the number of interruptions."""
    for count in range(100):
        try:
            with at_batch(at, interrupt):
                run_in(folder, inputs, "resume=auto", *settings)
        except Interrupted:
            continue
        return count
    raise AssertionError("the run does not come forward")


VARIANTS = {
    # Two of the three batches of some steps are in one epoch, the last step of an epoch has two.
    "accumulated gradients, importance": (
        ["objective=importance", "trainer.accumulate_grad_batches=3", "trainer.max_steps=8", EACH_STEP],
        8,
    ),
    "validation in an epoch, top-k": (["objective=topk", "trainer.val_check_interval=3", EACH_STEP], 4),
    "shares of epochs, Lagrangian, loader processes": (
        [
            "objective=lagrangian",
            "trainer.limit_train_batches=5",
            "trainer.val_check_interval=0.5",
            "trainer.max_steps=14",
            "callbacks.checkpoint.every_n_steps=3",
            "data.num_workers=1",
        ],
        5,
    ),
    "a search that comes to rest": (
        ["objective=random", "trainer.max_steps=20", "convergence.patience=1", "trainer.log_every_n_steps=2"],
        7,
    ),
    "teacher, half precision": (
        ["distillation=logits", "trainer.precision=bf16-mixed", "trainer.max_steps=8", EACH_STEP],
        4,
    ),
    "hidden states of a teacher": (["distillation=hidden", "trainer.max_steps=8", EACH_STEP], 4),
    "ranked, and hidden states of the dense model": (
        ["fine_tuning=0.5", "recovery=0.5", "distillation=hidden", "trainer.max_steps=8", EACH_STEP],
        4,
    ),
    "adapters": (["adapters=lora", "adapters.dropout=0.1", "optimizer.lr=0.01", "trainer.max_steps=8", EACH_STEP], 4),
    "frozen weights, values of gates, the model as its teacher": (
        ["optimizer.freeze=true", "objective=deterministic", "distillation=logits", "trainer.max_steps=8", EACH_STEP],
        4,
    ),
    "frozen weights and adapters": (
        ["optimizer.freeze=true", "distillation=logits", "adapters=lora", "trainer.max_steps=8", EACH_STEP],
        4,
    ),
    "dense": (["objective=none", "callbacks.checkpoint.every_n_steps=4"], 6),
}


# Their parts are in other variants.
LONG = ("hidden states of a teacher", "frozen weights and adapters")


@pytest.mark.parametrize("variant", [pytest.param(x, marks=pytest.mark.slow if x in LONG else ()) for x in VARIANTS])
def test_runs_that_are_interrupted_on_and_on_end_as_if_they_had_not_been(variant, inputs, tmp_path):
    settings, at = VARIANTS[variant]
    settings = [*[x for x in inputs if not (variant == "dense" and x.startswith("objective."))], *settings]
    run_in(tmp_path / "whole", settings)
    assert interrupt_again_and_again(tmp_path / "often", settings, at=at) >= 2
    assert_same_end(tmp_path / "often", tmp_path / "whole")


BETWEEN = {
    "before heads are removed": (execute, "remove"),
    "before the removal is on the disk": (phases, "_save_removed"),
    "before the export": (execute, "export"),
    "before the numbers": (Summary, "write"),
}


@pytest.mark.parametrize("moment", BETWEEN)
def test_a_run_resumes_between_its_phases(moment, inputs, whole, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*BETWEEN[moment], lambda *_, **__: interrupt())
        with pytest.raises(Interrupted):
            run_in(tmp_path / "run", inputs)
    assert not is_finished(tmp_path / "run")
    with at_batch(99, interrupt) as steps:
        run_in(tmp_path / "run", inputs, "resume=auto")
    assert steps == ([9, 10, 11] if "remov" in moment else [])  # nothing is trained again
    assert_same_end(tmp_path / "run", whole)


def test_a_removal_is_on_the_disk_before_recovery_starts(inputs, whole, tmp_path):
    with at_batch(10, interrupt), pytest.raises(Interrupted):
        run_in(tmp_path / "run", inputs)
    assert steps_of_checkpoints(tmp_path / "run", "removed") == [9]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "search")
    run_in(tmp_path / "run", inputs, "resume=auto")
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("number", "code"),
    [pytest.param(signal.SIGTERM, 143, marks=pytest.mark.first), (signal.SIGINT, 130), (signal.SIGUSR1, 138)],
)
def test_a_signal_saves_a_checkpoint_and_prints_the_resume_command(number, code, inputs, whole, tmp_path, capsys):
    folder = tmp_path / "run"
    with at_batch(6, lambda: os.kill(os.getpid(), number)) as steps:
        assert end_of(folder, inputs) == code
    assert steps == list(range(6))  # the step is ended
    assert steps_of_checkpoints(folder, "search") == [4, 6]
    error = capsys.readouterr().err
    assert error == f"Stopped by {number.name}.\nResume the run: python train.py resume={folder}\n"
    train.guarded_run(compose_settings([f"resume={folder}"]), [f"resume={folder}"])
    assert not (folder / "wandb").exists()  # As the run was begun with logger=csv.
    assert_same_end(folder, whole)


def test_a_damaged_checkpoint_is_passed_over_with_a_sentence(inputs, whole, tmp_path, capsys):
    folder = tmp_path / "run"
    with at_batch(8, interrupt), pytest.raises(Interrupted):
        run_in(folder, inputs, EACH_STEP)
    assert steps_of_checkpoints(folder, "search") == [6, 7]
    last = folder / "checkpoints" / "search" / "step-7.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    with at_batch(99, interrupt) as steps:
        run_in(folder, inputs, "resume=auto")
    assert steps[0] == 6
    assert "step-7.ckpt is damaged (" in capsys.readouterr().err
    assert_same_end(folder, whole)


def test_checkpoints_of_other_phases_are_skipped(inputs, whole, tmp_path):
    folder = tmp_path / "run"
    with at_batch(11, interrupt), pytest.raises(Interrupted):
        run_in(folder, inputs, EACH_STEP)
    recovery, removed = folder / "checkpoints" / "recovery", folder / "checkpoints" / "removed"
    shutil.copy(removed / "step-9.ckpt", recovery / "step-11.ckpt")
    torch.save({"x": 1}, recovery / "step-12.ckpt")
    run_in(folder, inputs, "resume=auto")
    assert_same_end(folder, whole)


def test_later_damaged_checkpoints_do_not_take_the_place_of_good_ones(inputs, whole, tmp_path):
    folder = tmp_path / "run"
    with at_batch(8, interrupt), pytest.raises(Interrupted):
        run_in(folder, inputs, EACH_STEP)
    for path in (folder / "checkpoints" / "search").glob("step-*.ckpt"):
        path.write_bytes(path.read_bytes()[:-1000])
    with at_batch(4, interrupt), pytest.raises(Interrupted):
        run_in(folder, inputs, EACH_STEP, "resume=auto")
    assert steps_of_checkpoints(folder, "search") == [2, 3]
    run_in(folder, inputs, "resume=auto")
    assert_same_end(folder, whole)


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1000])])
def test_a_removal_that_is_lost_is_done_again_and_so_is_the_recovery(harm, inputs, whole, tmp_path):
    folder = tmp_path / "run"
    with at_batch(11, interrupt), pytest.raises(Interrupted):
        run_in(folder, inputs, EACH_STEP)
    harm(folder / "checkpoints" / "removed" / "step-9.ckpt")
    run_in(folder, inputs, "resume=auto")
    assert_same_end(folder, whole)


@pytest.mark.parametrize(
    "settings",
    [["paths.checkpoints=PLACE/elsewhere"], ["paths.checkpoints=${output_dir}/deep/down"], ["+trainer.benchmark=true"]],
)
def test_a_folder_is_all_that_one_has_to_remember(settings, inputs, whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    given = [line.replace("PLACE", str(tmp_path)) for line in settings]
    with at_batch(8, interrupt), pytest.raises(Interrupted):
        run_in(folder, inputs, *given)
    seen = []
    step = FineTuning.training_step
    monkeypatch.setattr(
        FineTuning, "training_step", lambda self, *args: (seen.append(self.step_in_run), step(self, *args))[1]
    )
    overrides = [f"resume={folder}"]
    train.guarded_run(compose_settings(overrides), overrides)
    assert seen[0] == 4
    assert_same_end(folder, whole)


def test_a_full_disk_leaves_the_last_good_checkpoint(inputs, whole, tmp_path, capsys):
    """The system refuses to write larger files from the sixth batch on."""
    folder, before = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with at_batch(6, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))):
            assert end_of(folder, inputs) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    place = folder / "checkpoints" / "search"
    assert capsys.readouterr().err == (
        f"error: [Errno 27] File too large: '{place / 'step-8.ckpt'}'\n"
        f"Resume the run: python train.py resume={folder}\n"
    )
    assert {path.name for path in place.iterdir()} == {"step-4.ckpt"}
    run_in(folder, inputs, "resume=auto")
    assert_same_end(folder, whole)


def test_a_speedup_is_not_measured_again(inputs, tmp_path, monkeypatch):
    costs = LatencyCosts({"heads": 0.6}, fixed=0.4, fastest=3.0)
    monkeypatch.setattr(measured_budget, "measure_latency_costs", lambda gates, timer: costs)
    monkeypatch.setattr(measured_budget, "kept_at_speedup", lambda run, objective, gates: objective.kept(gates))
    settings = [*[x for x in inputs if not x.startswith("objective.")], "objective.speedup=2"]
    with at_batch(3, interrupt), pytest.raises(Interrupted):
        run_in(tmp_path / "run", settings)
    monkeypatch.setattr(measured_budget, "measure_latency_costs", None)
    run_in(tmp_path / "run", settings, "resume=auto")
    # A share of (1 / 2 - 0.4) / 0.6 of 12 heads.
    assert Outcome.of(tmp_path / "run").metrics["num_heads"] == 2


def test_the_run_at_wandb_is_continued(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    with at_batch(6, interrupt), pytest.raises(Interrupted):
        train.guarded_run(compose_settings([*inputs, f"output_dir={folder}"]))
    train.guarded_run(compose_settings([*inputs, f"output_dir={folder}", "resume=auto"]))
    segments = [path.name for path in (folder / "wandb").glob("offline-run-*")]
    assert len(segments) == 2
    assert len({name.split("-")[3] for name in segments}) == 1
