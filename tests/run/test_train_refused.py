"""Bad input is refused in one sentence before anything is written."""

import shutil
from pathlib import Path

import pytest
import transformers

import train
from tests.run.test_train import setting
from tests.support.family_models import FAMILIES
from tests.support.tiers import first_of
from tests.support.tiny_run import compose_settings, run_command, write_table


def test_number_of_heads_that_groups_cannot_keep_names_the_nearest(inputs, tmp_path, capsys):
    folder = tmp_path / "llama"
    shutil.copytree(Path(setting(inputs, "model.name")), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    transformers.LlamaConfig(**FAMILIES["llama"].arguments).save_pretrained(folder)
    overrides = [*inputs, f"model.name={folder}", "objective.num_heads=5", f"output_dir={tmp_path / 'out'}"]
    with pytest.raises(SystemExit):
        train.guarded_run(compose_settings(overrides))
    assert "4 or 6" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_speedup_out_of_reach_is_refused_before_anything_is_written(inputs, tmp_path, capsys):
    overrides = [x for x in inputs if not x.startswith("objective.")]
    with pytest.raises(SystemExit):
        train.guarded_run(compose_settings([*overrides, "objective.speedup=100", f"output_dir={tmp_path / 'out'}"]))
    assert "cannot be reached" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


SHARDED = "trainer=fsdp trainer.devices=2 trainer.precision=32-true"
BAD_INPUTS = {
    "objective.num_heads=0": "num_heads=0",
    "objective.num_heads=13": "has 12 heads",
    "objective.speedup=1.5": "Give either speedup",
    "gates.units=both": "must be heads, neurons or both",
    "objective.min_per_layer=2": "4 heads are too few for objective.min_per_layer=2",
    "gates.temperature=inf": "got inf",
    "data.train=empty.tsv": "empty.tsv",
    "data.train=no_label.tsv": "no column 'label'",
    "data.validation=new_label.tsv": "'third'",
    "data.text_column=body": "no column 'body'",
    "data.batch_size=0": "batch_size=0",
    "trainer.max_epochs=0 trainer.max_steps=-1": "nothing to train",
    "trainer.devices=0": "trainer.devices=0",
    "trainer=fsdp trainer.devices=1": "trainer.devices=1 starts one",
    f"{SHARDED} compile=true": "compile=true",
    f"{SHARDED} gates.discover=true": "needs a whole model",
    f"{SHARDED} optimizer=adafactor": "leave it out, or use trainer=ddp",
    "trainer=ddp trainer.strategy=deepspeed_stage_3": "DeepSpeed",
    "trainer.devices=20 trainer.strategy=ddp": "16 validation example(s) for 20 processes",
    "compile=true gradient_checkpointing=true": "choose one",
    "data.text_column=label": "different columns",
    "model.name=unknown_family": "BigBird",
    "model.name=images_only": "cannot be used for this task",
    "output_dir=empty.tsv/out": "is no folder",
    "++logger.mode=sometimes": "logger.mode=sometimes",
    "trainer.max_steps=0": "nothing to train",
    "paths.checkpoints=empty.tsv/here": "is no folder",
    "latency.batch_size=0": "latency.batch_size=0",
    "latency.length=p90": "latency.length=p90",
    "latency.length=100000": "latency.length=100000: the model takes at most 512 tokens",
    "latency.max_seconds=0": "latency.max_seconds=0",
}


@pytest.mark.parametrize("bad", first_of(BAD_INPUTS, every=8))
def test_bad_input_is_one_sentence_and_nothing_is_written(bad, inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty.tsv").write_text("")
    Path("no_label.tsv").write_text("text\nword1\n")
    write_table(Path("new_label.tsv"), rows=6, seed=0, labels=("first", "second", "third"))
    save_configuration(
        Path("unknown_family"), '{"model_type": "big_bird", "hidden_size": 12, "num_attention_heads": 2}'
    )
    save_configuration(Path("images_only"), '{"model_type": "vit"}')
    before = sorted(tmp_path.rglob("*"))
    overrides = [*inputs, "logger=csv", "output_dir=out", *bad.split()]
    with pytest.raises(SystemExit) as stop:
        train.guarded_run(compose_settings(overrides))
    assert stop.value.code == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert BAD_INPUTS[bad] in message
    assert message.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def save_configuration(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(text)


def test_existing_folder_is_not_overwritten(inputs, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    with pytest.raises(SystemExit):
        train.guarded_run(compose_settings([*inputs, f"output_dir={tmp_path / 'out'}"]))
    assert "overwrite=true" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


@pytest.mark.processes
def test_hub_that_cannot_be_reached_is_one_sentence(tmp_path):
    """The real-world call of the README, without a network."""
    import urllib.request

    try:
        urllib.request.urlopen("https://huggingface.co", timeout=3).close()
        pytest.skip("the hub can be reached")
    except OSError:
        pass
    call = [
        "model.name=google-bert/bert-base-uncased",
        "data=glue",
        "data.name=sst2",
        "objective.num_heads=36",
        "output_dir=out",
    ]
    process = run_command(call, cwd=tmp_path)
    assert process.returncode == 1
    assert process.stderr.startswith("error: Cannot load the model 'google-bert/bert-base-uncased'")
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_another_task_is_refused_before_anything_is_written(inputs, tmp_path, capsys):
    overrides = ["distillation=logits", f"distillation.teacher={setting(inputs, 'model.name')}"]
    with pytest.raises(SystemExit):
        train.guarded_run(compose_settings([*inputs, *overrides, f"output_dir={tmp_path / 'out'}"]))
    assert "LABEL_0, LABEL_1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
