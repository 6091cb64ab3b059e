"""TensorBoard, several loggers at once, and loggers of a user."""

import sys
from collections import Counter
from pathlib import Path

import pytest
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PluginAccumulator

import train
from gating.tracking.loggers import build_loggers, log_outcome
from tests.support.interruptions import Interrupted, at_batch, interrupt, run_in
from tests.support.tiny_run import compose_settings

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
    assert [event.step for event in events.Images("gates")] == [12]
    assert logged["compact/num_heads"][0][1] == 4
    hparams = PluginAccumulator(str(whole / "tensorboard")).Reload().PluginTagToContent("hparams")
    assert b"objective/num_heads" in hparams["_hparams_/session_start_info"]
    assert not (whole / "wandb").exists()
    assert (whole / "csv" / "metrics.csv").is_file()


@pytest.mark.runs
def test_a_resumed_run_goes_on_in_the_same_folder(whole, inputs, tmp_path):
    folder = tmp_path / "run"
    with at_batch(8, interrupt), pytest.raises(Interrupted):
        run_in(folder, inputs, "logger=tensorboard")
    run_in(folder, inputs, "logger=tensorboard", "resume=auto")
    expected, found = curves(whole), curves(folder)
    assert found.keys() == expected.keys()
    for tag in ("train/loss", "val/accuracy"):
        # Steps after the checkpoint may stand twice, with the same values.
        assert dict(found[tag]) == dict(expected[tag])


def test_secrets_are_in_no_event(tmp_path):
    settings = {"model": {"token": SECRET, "name": f"https://me:{SECRET}@host/x"}, "seed": 3}
    tensorboard = TensorBoardLogger(str(tmp_path), name="tensorboard", version="", default_hp_metric=False)
    log_outcome(build_loggers(tmp_path, loggers={"tensorboard": tensorboard}, run_config=settings), {"num_heads": 3.0})
    written = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"model/token" in written
    assert SECRET.encode() not in written


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
