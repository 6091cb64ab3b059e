"""Settings of a folder that could run code or point outside it are refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.run.conftest import begin
from tests.storage.test_results import snapshot
from tests.support.interruptions import Interrupted, at_batch, interrupt, run_in
from tests.support.resumed import change, recalled, resume
from tests.support.tiny_run import run_command

pytestmark = pytest.mark.runs


@pytest.fixture(scope="module")
def inputs(inputs: list[str]) -> list[str]:
    return [*inputs, "trainer.max_steps=4", "trainer.val_check_interval=1"]


@pytest.fixture(scope="module")
def begun(inputs, tmp_path_factory) -> Path:
    return begin(tmp_path_factory.mktemp("begun") / "run", inputs)


EVIL = {"_target_": "os.system", "command": "touch evil"}
TARGETS: dict[str, dict[str, Any]] = {
    "a shell": {"callbacks__evil": EVIL},
    "a helper of torch": {"callbacks__evil": {"_target_": "torch.utils.collect_env.run", "command": "touch evil"}},
    "a pickle": {"callbacks__evil": {"_target_": "pandas.read_pickle", "filepath_or_buffer": "evil.pkl"}},
    "another pickle": {"callbacks__evil": {"_target_": "torch.load", "f": "evil.pt", "weights_only": False}},
    "a copy": {"callbacks__evil": {"_target_": "shutil.copy", "src": "data", "dst": "evil"}},
    "in a list": {"callbacks__learning_rate__logging_interval": ["step", [EVIL]]},
    "deep inside": {"trainer__plugins": {"a": {"b": [{"c": EVIL}]}}},
    "in the place of a class": {"optimizer___target_": "torch.utils.collect_env.run"},
    "a class of another place": {"callbacks__checkpoint___target_": "gating.data.sources.load_files"},
    "a class of the same group at another place": {"objective___target_": "gating.BudgetSchedule"},
    "with other names": {"adapters": {"_target_": "shutil.rmtree", "path": "data"}},
    "a class for a value": {"task__metrics": EVIL, "seed": 0},
    "no class but a call by position": {"gates___args_": ["evil"]},
    "another way of calling": {"callbacks__checkpoint___partial_": True},
    "a strategy": {"trainer__strategy": EVIL},
    "what counts as rest": {"convergence": EVIL},
}


@pytest.mark.parametrize("how", TARGETS)
def test_nothing_that_a_folder_names_is_run(how, moved, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("data").write_text("x")
    change(moved, **TARGETS[how])
    before = snapshot(tmp_path)
    assert resume(moved) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert (
        "which determines which code is called, and neither this command nor its configuration has this value" in error
    )
    assert f"give it again: python train.py resume={moved} ++" in error.replace("'", "")
    assert {path: text for path, text in snapshot(tmp_path).items() if not path.endswith(".lock")} == {
        path: text for path, text in before.items() if not path.endswith(".lock")
    }


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "a secret": ({"model__tokenizer": "${oc.env:HOME}"}, "is an interpolation"),
    "a resolver": ({"logger__project": "${now:%Y}"}, "is an interpolation"),
    "in a list": ({"task__metrics": ["${oc.env:HOME}"]}, "is an interpolation"),
    "weights": ({"model__use_safetensors": False}, "allows weights in a format that can run code"),
    "a kernel": ({"model__attn_implementation": "somebody/kernel"}, "makes transformers load code"),
    "a kernel in a configuration": ({"model__config": {"attn_implementation": "a/b"}}, "makes transformers load code"),
    "remote code": ({"model__config": {"trust_remote_code": True}}, "makes transformers load code"),
    "code of a part": ({"model__config": {"text_config": {"auto_map": {"a": "b"}}}}, "makes transformers load code"),
    "a folder": ({"callbacks__checkpoint__dirpath": "/elsewhere"}, "is not the folder of this run's checkpoints"),
}


@pytest.mark.parametrize("how", OTHERS)
def test_settings_that_could_run_code_or_lead_elsewhere_are_not_taken(how, moved, capsys):
    settings, reason = OTHERS[how]
    change(moved, **settings)
    assert resume(moved) == 1
    error = capsys.readouterr().err
    assert f", which {reason}" in error
    assert len(error.splitlines()) == 1


def test_a_model_of_an_experiment_may_have_the_format_set_by_the_experiment(moved):
    change(moved, model__name="Helsinki-NLP/opus-mt-en-de", model__use_safetensors=False)
    assert recalled(moved)["model"]["use_safetensors"] is False


def test_yaml_tags_are_not_read(moved, capsys):
    with (moved / "config.yaml").open("a") as file:
        file.write("evil: !!python/object/apply:os.system ['touch evil']\n")
    assert resume(moved) == 1
    assert "config.yaml cannot be read: ConstructorError" in capsys.readouterr().err


@pytest.mark.parametrize("way", ["named", "by a link", "by a way out of the folder"])
def test_checkpoints_of_another_run_are_not_taken_for_those_of_a_folder(way, inputs, moved, tmp_path, capsys):
    with at_batch(3, interrupt), pytest.raises(Interrupted):
        run_in(tmp_path / "other", inputs, f"paths.checkpoints={tmp_path}/disk")
    shutil.rmtree(moved / "checkpoints")
    if way == "by a link":
        (moved / "checkpoints").symlink_to(tmp_path / "disk")
    elif way == "named":
        change(moved, paths__checkpoints=str(tmp_path / "disk"))
    else:
        change(moved, output_dir=str(tmp_path / "other"), paths__checkpoints=f"{tmp_path}/other/../disk")
    before = snapshot(tmp_path / "disk")
    assert resume(moved) == 1
    assert (
        "which may be those of another run. If they are its own, confirm with: python train.py"
        in capsys.readouterr().err
    )
    assert snapshot(tmp_path / "disk") == before


@pytest.mark.parametrize("name", ["csv/metrics.csv", "csv", ".lock", "report", "metrics.json", "report/index.html"])
def test_a_run_writes_to_nothing_that_a_link_in_a_folder_leads_to(name, moved, tmp_path, capsys):
    far = tmp_path / "far"
    if name in ("csv", "report"):
        far.mkdir()
        shutil.rmtree(moved / name, ignore_errors=True)
    else:
        far.write_text("precious")
        (moved / name).parent.mkdir(exist_ok=True)
        (moved / name).unlink(missing_ok=True)
    (moved / name).symlink_to(far)
    assert resume(moved) == 1
    assert "outside the run's folder: replace it by a copy, or remove it" in capsys.readouterr().err
    assert far.is_dir() or far.read_text() == "precious"


def test_classes_named_on_the_command_line_are_trusted(inputs, moved, capsys):
    mine = {"_target_": "pytorch_lightning.callbacks.ModelSummary", "max_depth": 2}
    change(moved, callbacks__mine=mine)
    again = "++callbacks.mine._target_=pytorch_lightning.callbacks.ModelSummary"
    assert resume(moved) == 1
    assert f"give it again: python train.py resume={moved} {again}\n" in capsys.readouterr().err
    assert recalled(moved, again)["callbacks"]["mine"] == mine
    assert recalled(moved, f"+{again.lstrip('+')}")["callbacks"]["mine"] == mine
    whole = "+callbacks.mine={_target_: pytorch_lightning.callbacks.DeviceStatsMonitor}"
    assert recalled(moved, whole)["callbacks"]["mine"] == {"_target_": "pytorch_lightning.callbacks.DeviceStatsMonitor"}
    assert "mine" not in recalled(moved, "callbacks=default")["callbacks"]
    assert resume(moved, again) == 0


def test_a_class_that_is_named_for_one_place_is_not_for_another(moved, capsys):
    change(moved, callbacks__evil=EVIL)
    assert resume(moved, "++callbacks.mine._target_=os.system") == 1
    assert "has callbacks.evil._target_=os.system" in capsys.readouterr().err


OPTIONS = {
    "callbacks/more.yaml": "defaults: [default]\nmine:\n  _target_: my_parts.Noted\n",
    "experiment/mine.yaml": "# @package _global_\ndefaults:\n  - override /callbacks: more\nseed: 3\n",
    "experiment/inline.yaml": "# @package _global_\ncallbacks:\n  mine:\n    _target_: my_parts.Noted\n",
}


@pytest.mark.parametrize("begin", ["callbacks=more", "experiment=mine", "experiment=inline"])
@pytest.mark.parametrize("how", ["--config-dir=conf", "hydra.searchpath=[file://PLACE/conf]"])
def test_options_of_ones_own_are_trusted_as_those_of_the_program(begin, how, inputs, tmp_path):
    for name, text in OPTIONS.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / name).write_text(text)
    (tmp_path / "my_parts.py").write_text(
        "import pathlib\nfrom pytorch_lightning.callbacks import Callback\n\nclass Noted(Callback):\n"
        "    def on_train_start(self, trainer, module):\n        pathlib.Path('noted').touch()\n"
        "        if not pathlib.Path('go').exists():\n            raise OSError(5, 'no more', 'disk')\n"
    )
    own = [how.replace("PLACE", str(tmp_path))]
    environment = {"PYTHONPATH": str(tmp_path)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", environment["PYTHONPATH"])
        first = run_command([*inputs, "logger=csv", begin, "output_dir=run", *own], cwd=tmp_path)
        assert first.returncode == 1, first.stderr
        assert "Resume the run" not in first.stderr  # There is no checkpoint yet.
        (tmp_path / "noted").unlink()
        (tmp_path / "go").touch()
        refused = run_command(["resume=run"], cwd=tmp_path)
        assert "callbacks.mine._target_=my_parts.Noted, which determines which code is called" in refused.stderr
        assert not (tmp_path / "noted").exists()
        second = run_command(["resume=run", *own], cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert (tmp_path / "run" / "metrics.json").exists()
    assert (tmp_path / "noted").exists()
