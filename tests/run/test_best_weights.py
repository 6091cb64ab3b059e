"""Recovery and dense runs end with their last weights, or those of the best validation, also after interruptions."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gating.report.summary import Summary
from gating.training.module import FineTuning
from tests.support.interruptions import Interrupted, at_batch, interrupt, run_in, steps_of_checkpoints
from tests.support.outcome import Outcome

pytestmark = pytest.mark.runs

# Validations of the recovery after the steps 8, 10 and 12.
STEPS = ["recovery=0.5", "trainer.val_check_interval=2", "callbacks.checkpoint.keep=99", "convergence=null"]
STEPS += ["keep_checkpoints=true", "recovery_keep=best"]
EVERY = "callbacks.checkpoint.every_n_steps=1"


@pytest.fixture(scope="module")
def inputs(inputs: list[str]) -> list[str]:
    return [*inputs, *STEPS]


@contextmanager
def scored(scores: dict[int, float], *, name: str = "val/accuracy", removed: float | None = None):
    """Replace the scores of validations after the steps given, those of others by 0, and that after the removal."""
    log_dict = FineTuning.log_dict

    def log(self: FineTuning, values, **options) -> None:
        changed = {name: torch.tensor(scores.get(self.step_in_run, 0.0))} if name in values else {}
        log_dict(self, {**values, **changed}, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FineTuning, "log_dict", log)
        patch.setattr(Summary, "score_of", lambda *_: removed)
        yield


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    # transformers 5.0 saves a BERT that it has loaded by the names of TensorFlow.
    stored = load_file(folder / "model.safetensors").items()
    return {name.replace(".gamma", ".weight").replace(".beta", ".bias"): weight for name, weight in stored}


def kept_weights(folder: Path) -> dict[str, torch.Tensor]:
    return weights_of(folder / "compact")


def weights_after(folder: Path, phase: str, step: int) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(folder / "checkpoints" / phase / f"step-{step}.ckpt", weights_only=True)
    return {name.removeprefix("model."): weight for name, weight in checkpoint["state_dict"].items()}


def assert_kept(folder: Path, step: int, *, phase: str = "recovery") -> None:
    kept, expected = kept_weights(folder), weights_after(folder, phase, step)
    assert all(torch.equal(weight, expected[name]) for name, weight in kept.items())
    assert json.loads((folder / "metrics.json").read_text())["kept_step"] == step


def test_recovery_keeps_the_weights_of_the_best_validation(inputs, tmp_path, capsys):
    with scored({8: 0.5, 10: 0.75, 12: 0.25}):
        run_in(tmp_path / "run", inputs)
    assert_kept(tmp_path / "run", 10)
    assert "keeps the weights after step 10 of 12: validation accuracy 0.7500" in capsys.readouterr().out


@pytest.mark.parametrize(("removed", "step"), [(0.9, 6), (0.75, 10)])
def test_weights_right_after_the_removal_may_be_the_best(removed, step, inputs, tmp_path):
    with scored({8: 0.5, 10: 0.75, 12: 0.25}, removed=removed):
        run_in(tmp_path / "run", inputs, EVERY)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["kept_step"] == step
    if step > 6:
        assert_kept(tmp_path / "run", step)
    else:
        assert metrics["val/accuracy"] == metrics["removed/val/accuracy"]
        removed_weights = torch.load(tmp_path / "run" / "checkpoints" / "removed" / "step-6.ckpt")["weights"]
        trained, kept = weights_after(tmp_path / "run", "recovery", 7), kept_weights(tmp_path / "run")
        assert all(torch.equal(weight, removed_weights[name]) for name, weight in kept.items())
        assert any(not torch.equal(weight, trained[name]) for name, weight in kept.items())


def test_of_equal_scores_the_later_is_the_best_and_nan_is_not(inputs, tmp_path):
    with scored({8: 0.5, 10: 0.5, 12: float("nan")}):
        run_in(tmp_path / "run", inputs)
    assert_kept(tmp_path / "run", 10)


def test_the_last_weights_are_kept_by_default(inputs, tmp_path):
    with scored({8: 0.5}):
        run_in(tmp_path / "run", [line for line in inputs if line != "recovery_keep=best"])
    assert_kept(tmp_path / "run", 12)


def test_dense_models_keep_the_best_too(inputs, tmp_path):
    dense = [line for line in inputs if not line.startswith(("objective", "recovery=", "convergence"))]
    with scored({6: 0.5}):
        run_in(tmp_path / "run", dense, "objective=none")
        run_in(tmp_path / "taught", inputs, "distillation=logits", "trainer.max_steps=24")
    assert_kept(tmp_path / "run", 6, phase="dense")
    teacher, expected = weights_of(tmp_path / "taught" / "dense"), kept_weights(tmp_path / "run")
    assert all(torch.equal(weight, expected[name]) for name, weight in teacher.items())


def test_lower_is_better_for_errors(inputs, tmp_path):
    """A regression compares by its mean squared error, which the score names."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        rows = [f"word{number % 40} word{number % 7}\t{number % 5}.5" for number in range(24)]
        (folder / f"{split}.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    data = [f"data.{split}={folder / split}.tsv" for split in ("train", "validation", "test")]
    others = [line for line in inputs if not line.startswith("data.")]
    with scored({8: 3.0, 10: 1.0, 12: 2.0}, name="val/mse"):
        run_in(tmp_path / "run", others, *data, "data.batch_size=3", "task=regression", "task.metrics=[mse]")
    assert_kept(tmp_path / "run", 10)


def test_the_best_weights_survive_an_interruption(inputs, tmp_path):
    with scored({8: 0.5, 10: 0.25}):
        run_in(tmp_path / "whole", inputs)
        with at_batch(10, interrupt), pytest.raises(Interrupted):
            run_in(tmp_path / "run", inputs, EVERY)
        assert steps_of_checkpoints(tmp_path / "run", "recovery")[-1] == 9
        run_in(tmp_path / "run", inputs, EVERY, "resume=auto")
    comparison = Outcome.of(tmp_path / "whole").compare(Outcome.of(tmp_path / "run"))
    assert all(comparison.values()), comparison
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["kept_step"] == 8


def test_the_best_weights_survive_a_return_to_an_earlier_checkpoint(inputs, tmp_path):
    with scored({8: 0.25, 10: 0.75}), at_batch(12, interrupt), pytest.raises(Interrupted):
        run_in(tmp_path / "run", inputs, EVERY)
    for later in (10, 11):
        (tmp_path / "run" / "checkpoints" / "recovery" / f"step-{later}.ckpt").unlink(missing_ok=True)
    with scored({}):
        run_in(tmp_path / "run", inputs, EVERY, "resume=auto")
    assert_kept(tmp_path / "run", 8)


def test_an_interruption_after_the_last_step_does_not_lose_them(inputs, tmp_path):
    with scored({8: 0.5}):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gating.run.execute.export", lambda *_, **__: interrupt())
            with pytest.raises(Interrupted):
                run_in(tmp_path / "run", inputs)
        run_in(tmp_path / "run", inputs, "resume=auto")
    assert_kept(tmp_path / "run", 8)


def test_the_last_step_is_validated_once(inputs, tmp_path):
    with scored({12: 0.5}):
        run_in(tmp_path / "run", inputs, "trainer.val_check_interval=4")
    rows = (tmp_path / "run" / "csv" / "metrics.csv").read_text().splitlines()
    header = rows[0].split(",")
    steps = [row.split(",")[header.index("step")] for row in rows[1:] if row.split(",")[header.index("val/accuracy")]]
    assert [int(float(step)) for step in steps] == [4, 10, 12]
    assert_kept(tmp_path / "run", 12)


def test_without_validation_the_last_weights_are_kept(inputs, tmp_path):
    run_in(tmp_path / "run", inputs, "trainer.limit_val_batches=0")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["kept_step"] == 12
