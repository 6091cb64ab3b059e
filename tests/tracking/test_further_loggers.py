"""TensorBoard, several loggers at once, and loggers of a user."""

import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PluginAccumulator

import train
from gating.run.command import open_tables
from gating.tracking import tensorboard_log
from gating.tracking.loggers import build_loggers
from gating.tracking.position import log_position, return_to
from gating.tracking.tensorboard_log import TensorBoardLog
from tests.support.interruptions import Interrupted, at_batch, interrupt, run_in
from tests.support.tiny_run import ROOT, compose_settings

SECRET = "hf_" + "s" * 30


def events_of(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = events_of(folder)
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_in(folder, inputs, "logger=tensorboard")
    return folder


@pytest.mark.runs
def test_a_run_has_curves_figures_and_settings(whole):
    events, logged = events_of(whole), curves(whole)
    assert [step for step, _ in logged["train/loss"]] == list(range(12))
    assert {"val/accuracy", "gates/open", "compact/num_heads", "compact/test/accuracy"} <= logged.keys()
    assert [event.step for event in events.Images("gates/heads")] == [4, 8]
    assert logged["compact/num_heads"][0][1] == 4
    hparams = PluginAccumulator(str(whole / "tensorboard")).Reload().PluginTagToContent("hparams")
    assert b"objective/num_heads" in hparams["_hparams_/session_start_info"]
    assert not (whole / "wandb").exists()
    assert (whole / "csv" / "metrics.csv").is_file()


@pytest.mark.runs
def test_a_resumed_run_logs_no_step_twice(whole, inputs, tmp_path):
    folder = tmp_path / "run"
    with at_batch(8, interrupt), pytest.raises(Interrupted):
        run_in(folder, inputs, "logger=tensorboard")
    run_in(folder, inputs, "logger=tensorboard", "resume=auto")
    expected, found = curves(whole), curves(folder)
    timed = {tag for tag in expected if tag.startswith(("seconds/", "latency_ms", "compact/speedup", "speedup"))}
    assert found.keys() == expected.keys()
    assert {tag: found[tag] for tag in found.keys() - timed} == {tag: expected[tag] for tag in expected.keys() - timed}


@pytest.mark.runs
def test_a_new_run_in_the_same_folder_replaces_the_events(whole, inputs, tmp_path):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    (folder / "tensorboard" / "notes.txt").write_text("mine")
    before = sorted((folder / "tensorboard").glob("events*"))
    run_in(folder, inputs, "overwrite=true", "trainer.max_steps=2", "callbacks=none")
    assert before
    assert not any(path.exists() for path in before)
    assert (folder / "tensorboard" / "notes.txt").read_text() == "mine"


def test_events_of_an_earlier_process_are_cut_off(tmp_path):
    def log(steps: range, tag: str = "x") -> list:
        loggers = build_loggers(tmp_path, loggers={"tensorboard": TensorBoardLog()})
        for step in steps:
            loggers[-1].log_metrics({tag: float(step)}, step=step)
        return loggers

    first = log(range(3))
    position = log_position(first)
    first[-1].log_metrics({"x": 9.0}, step=9)
    first[-1].finalize("success")
    log(range(20, 22))[-1].finalize("success")
    second = build_loggers(tmp_path, loggers={"tensorboard": TensorBoardLog()})
    return_to(second, position)
    second[-1].log_metrics({"x": 3.0}, step=3)
    # What this process has logged stays.
    return_to(second, position)
    second[-1].finalize("success")
    assert curves(tmp_path) == {"x": [(step, float(step)) for step in range(4)]}


def test_events_of_other_runs_behind_a_link_stay(tmp_path):
    (tmp_path / "shared").mkdir()
    other = tmp_path / "shared" / "events.out.tfevents.1.host"
    other.write_bytes(b"others")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").symlink_to(tmp_path / "shared")
    return_to(build_loggers(tmp_path / "run", loggers={"tensorboard": TensorBoardLog()}), {})
    assert other.read_bytes() == b"others"


def test_secrets_are_in_no_event(tmp_path):
    settings = {"model": {"token": SECRET, "name": f"https://me:{SECRET}@host/x"}, "seed": 3}
    (_, logger) = build_loggers(tmp_path, loggers={"tensorboard": TensorBoardLog()}, run_config=settings)
    logger.log_outcome({"compact/num_heads": 3.0})
    written = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"model/token" in written
    assert SECRET.encode() not in written


def test_without_tensorboard_there_is_one_sentence_before_the_run(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard_log, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'head-gating\[tensorboard\]'"):
        train.run(compose_settings([*inputs, "logger=tensorboard", f"output_dir={tmp_path / 'run'}"]))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("chosen", "mode", "names"),
    [
        ("tensorboard", None, ["tensorboard"]),
        ("many_loggers", "auto", ["tensorboard"]),
        ("[wandb,tensorboard]", "auto", ["tensorboard"]),
        ("[tensorboard,csv]", None, ["tensorboard"]),
        ("[tensorboard,wandb,csv]", "auto", ["tensorboard"]),
        ("csv", None, []),
        ("wandb", "auto", []),
    ],
)
def test_options_combine_in_any_order(chosen, mode, names):
    logger = compose_settings([f"logger={chosen}"]).logger
    assert logger.get("mode") == mode
    assert list(logger.get("loggers", {})) == names


def test_every_option_takes_the_settings_of_wandb():
    arguments = ["debug=fast", "logger.mode=offline", "logger.name=mine", "logger.loggers.own._target_=a.B"]
    logger = compose_settings(open_tables(arguments, conf=ROOT / "conf")).logger
    assert (logger.mode, logger.name, logger.loggers.own._target_) == ("offline", "mine", "a.B")


OWN = """
from pytorch_lightning.loggers import CSVLogger

class Own(CSVLogger):
    seen = []

    def log_hyperparams(self, params=None):
        self.seen.append(("settings", params))

    def log_metrics(self, metrics, step=None):
        self.seen += [(name, step) for name in metrics]

def nothing():
    return 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_logger.py").write_text(OWN)
    (tmp_path / "conf" / "logger").mkdir(parents=True)
    (tmp_path / "conf" / "logger" / "mine.yaml").write_text(
        "loggers:\n  mine:\n    _target_: my_logger.Own\n    save_dir: ${output_dir}\n    name: mine\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_logger", None)


@pytest.mark.runs
def test_a_logger_of_a_user_gets_settings_metrics_and_the_outcome(own, inputs):
    settings = [*inputs, "trainer.max_steps=4", "callbacks=none", f"hydra.searchpath=[file://{own / 'conf'}]"]
    settings += ["logger=[csv,mine]", f"output_dir={own / 'run'}", "logger.loggers.mine.flush_logs_every_n_steps=7"]
    train.run(compose_settings([f"+{line}" if "flush" in line else line for line in settings]))
    seen = sys.modules["my_logger"].Own.seen
    (first,) = [value for name, value in seen if name == "settings"]
    assert first["objective"]["num_heads"] == 4
    counts = Counter(name for name, _ in seen)
    assert counts["train/loss"] == 4
    assert counts["compact/test/accuracy"] == 1


def test_an_object_that_is_no_logger_is_refused_before_the_run(own, inputs):
    wrong = "+logger.loggers={mine: {_target_: my_logger.nothing}}"
    with pytest.raises(ValueError, match=r"logger\.loggers\.mine is a int: give it the _target_ of a Logger"):
        train.run(compose_settings([*inputs, "logger=csv", wrong, f"output_dir={own / 'run'}"]))
    assert not (own / "run").exists()
