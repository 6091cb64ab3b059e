"""Whole runs, from the command to the compact model."""

import csv
import json
import re
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
import torch
import transformers
import wandb
from safetensors.torch import load_file
from transformers import AutoTokenizer

import gating
import train
from gating.pruning.latency_costs import LatencyCosts
from gating.run import measured_budget
from tests.run.test_resumed_logs import records_of
from tests.support.family_models import FAMILIES
from tests.support.tiny_run import compose_settings, run_command

pytestmark = pytest.mark.runs


@pytest.fixture(scope="module")
def finished(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """One run through the command line, which the tests below share."""
    where = tmp_path_factory.mktemp("run")
    command = [*inputs, f"output_dir={where / 'out'}"]
    return where / "out", run_command(command, cwd=where, python=[sys.executable])


def run_here(overrides: list[str], folder: Path) -> dict:
    """Run in this process, which saves the seconds of imports."""
    train.run(compose_settings([*overrides, "logger=csv", f"output_dir={folder}"]))
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.first
def test_run_ends_well(finished):
    _, process = finished
    assert process.returncode == 0, process.stderr
    assert "4 of 12 heads open" not in process.stderr
    for wanted in ("Heads per layer", "compact, after recovery", "latency (ms)", "wandb leet", "wandb sync"):
        assert wanted in process.stdout


@pytest.mark.first
def test_run_folder_keeps_the_contract(finished):
    folder, _ = finished
    numbers = json.loads((folder / "metrics.json").read_text())
    assert numbers["num_heads"] == 4
    assert numbers["num_heads_before"] == 12
    assert numbers["num_parameters"] < numbers["num_parameters_before"]
    for name in ("test/accuracy", "search/val/accuracy", "removed/val/accuracy", "compact/test/accuracy"):
        assert 0 <= numbers[name] <= 1
    assert numbers["speedup"] > 0
    assert {"seed", "version/torch", "seconds/search", "seconds/recovery"} <= set(numbers)
    report = ("report/index.html", "report/gates.png")
    for path in ("config.yaml", *report, "compact/config.json", "csv/metrics.csv"):
        assert (folder / path).is_file(), path
    assert not list(folder.rglob("*.bin"))


@pytest.mark.first
def test_compact_model_is_physically_smaller(finished):
    folder, _ = finished
    weights = load_file(folder / "compact" / "model.safetensors")
    blocks = gating.find_attention_blocks(gating.load_compact(folder / "compact"))
    assert sum(block.num_heads for block in blocks) == 4
    for block in blocks:
        name, width = block.name, 8 * block.num_heads
        projection = f"bert.{name.removesuffix('.self')}.output.dense.weight"
        assert weights[projection].shape == (32, width)
        if width:
            assert weights[f"bert.{name}.query.weight"].shape == (width, 32)


@pytest.mark.first
def test_compact_model_has_the_accuracy_that_was_reported(finished, inputs):
    folder, _ = finished
    model = gating.load_compact(folder / "compact")
    tokenizer = AutoTokenizer.from_pretrained(folder / "compact")
    rows = Path(setting(inputs, "data.test")).read_text().splitlines()[1:]
    texts, labels = zip(*(row.split("\t") for row in rows), strict=True)
    logits = model(**tokenizer(list(texts), padding=True, return_tensors="pt")).logits
    right = [model.config.id2label[int(i)] == label for i, label in zip(logits.argmax(1), labels, strict=True)]
    reported = json.loads((folder / "metrics.json").read_text())["test/accuracy"]
    assert sum(right) / len(right) == pytest.approx(reported)


@pytest.mark.first
def test_offline_run_can_be_read_back(finished):
    folder, _ = finished
    run_folder = next((folder / "wandb").glob("offline-run-*"))
    records = records_of(run_folder)
    text = json.dumps(records)
    for name in (
        "train/loss",
        "train/task_loss",
        "val/accuracy",
        "gates/expected_open",
        "gates/open",
        "gates/target",
        "gates/undecided",
        "gates/layer_00/open",
        "compact/num_heads",
        "compact/speedup",
        "search/val/accuracy",
        "objective",
    ):
        assert name in text, name
    assert len(list(run_folder.rglob("gates*.png"))) == 1
    assert any("exit" in json.dumps(record) for record in records)


@pytest.mark.first
def test_gates_descend_to_the_budget(finished):
    folder, _ = finished
    header, *rows = [line.split(",") for line in (folder / "csv" / "metrics.csv").read_text().splitlines()]
    expected = [float(row[header.index("gates/expected_open")]) for row in rows if row[header.index("gates/open")]]
    assert expected[0] == pytest.approx(12, abs=1e-4)  # Gates rest until the loss has fallen.
    assert expected[-1] == pytest.approx(4, abs=1e-2)
    steps = [float(row[header.index("step")]) for row in rows]
    # Counted from 0, and on from search to recovery.
    assert sorted(set(steps)) == list(range(12))


def test_dense_run_goes_through_the_same_code(inputs, tmp_path):
    overrides = [x for x in inputs if not x.startswith("objective.")]
    numbers = run_here([*overrides, "objective=none"], tmp_path / "out")
    assert numbers["num_heads"] == numbers["num_heads_before"] == 12
    assert numbers["dense/test/accuracy"] == numbers["test/accuracy"]
    assert gating.load_compact(tmp_path / "out" / "compact").num_parameters() == numbers["num_parameters"]


@pytest.mark.parametrize(
    "family",
    ["distilbert", "llama", *(pytest.param(x, marks=pytest.mark.slow) for x in ("deberta-v2", "modernbert", "gpt2"))],
)
def test_the_same_command_runs_other_families(family, inputs, tmp_path):
    """No setting but the model's name changes; a gate of the llama stands for two query heads."""
    folder = tmp_path / family
    shutil.copytree(Path(setting(inputs, "model.name")), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = getattr(transformers, FAMILIES[family].config)(**FAMILIES[family].arguments)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    numbers = run_here([*inputs, f"model.name={folder}"], tmp_path / "out")
    assert numbers["num_heads"] == 4
    model = gating.load_compact(tmp_path / "out" / "compact")
    assert sum(block.num_heads for block in gating.find_attention_blocks(model)) == 4


def setting(inputs: list[str], name: str) -> str:
    return next(x for x in inputs if x.startswith(f"{name}=")).partition("=")[2]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "compact" / "model.safetensors")


@pytest.mark.parametrize("settings", [[], ["gradient_checkpointing=true"]], ids=["seed", "recomputed activations"])
def test_the_same_seed_gives_the_same_model(settings, inputs, whole, tmp_path):
    run_here([*inputs, *settings], tmp_path / "again")
    one, two = weights_of(whole), weights_of(tmp_path / "again")
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_price_decides_how_many_heads_stay(inputs, tmp_path):
    overrides = [x for x in inputs if not x.startswith("objective.")]
    numbers = run_here(
        [*overrides, "objective=l0", "objective.price=5", "optimizer.gate_lr=0.5", "trainer.max_steps=24"],
        tmp_path / "out",
    )
    assert 1 <= numbers["num_heads"] < 12
    assert_the_last_row_has_the_heads_that_are_kept(tmp_path / "out")


@pytest.mark.parametrize(
    "rival",
    ["budget", "lagrangian", "topk", "importance", "random"],
)
def test_every_objective_with_a_number_ends_with_it(rival, inputs, tmp_path):
    overrides = [*inputs, *f"objective={rival}".split(), "objective.min_per_layer=1", "objective.num_heads=5"]
    assert run_here(overrides, tmp_path / "out")["num_heads"] == 5
    blocks = gating.find_attention_blocks(gating.load_compact(tmp_path / "out" / "compact"))
    assert min(block.num_heads for block in blocks) >= 1
    assert_the_last_row_has_the_heads_that_are_kept(tmp_path / "out")


def assert_the_last_row_has_the_heads_that_are_kept(folder: Path) -> None:
    with (folder / "csv" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        last = [row for row in csv.DictReader(file) if row["gates/open"]][-1]
    layers = [float(value) for name, value in last.items() if name.startswith("gates/layer_")]
    numbers = json.loads((folder / "metrics.json").read_text())
    assert float(last["gates/open"]) == sum(layers) == numbers["num_heads"]
    # Heads are removed after the last step of the search.
    assert int(last["step"]) == numbers["search_steps"]


def test_a_search_that_has_come_to_rest_leaves_its_steps_to_recovery(inputs, tmp_path, capsys):
    overrides = [*inputs, "objective=random", "trainer.max_steps=40", "convergence.patience=2"]
    numbers = run_here(overrides, tmp_path / "out")
    # Two looks after the first one that is not before .67 of the 30 steps.
    assert numbers["search_steps"] == 21 + 2
    assert "4 heads did not change at 2 checks in a row" in numbers["search_ended"]
    assert f"after 23 of 30 steps: {numbers['search_ended']}" in capsys.readouterr().out
    # No step is lost: recovery takes the remaining steps, which are counted from 0.
    header, *rows = [line.split(",") for line in (tmp_path / "out" / "csv" / "metrics.csv").read_text().splitlines()]
    assert max(float(row[header.index("step")]) for row in rows) == 39


def test_a_search_without_convergence_takes_all_its_steps(inputs, tmp_path):
    overrides = [*inputs, "objective=random", "trainer.max_steps=20", "convergence=null"]
    assert run_here(overrides, tmp_path / "out")["search_steps"] == 15


def test_a_speedup_becomes_a_share_of_latency(inputs, tmp_path, monkeypatch, capsys):
    costs = LatencyCosts({"heads": 0.6}, fixed=0.29, fastest=3.0, blocks={"heads": 0.09})
    monkeypatch.setattr(measured_budget, "measure_latency_costs", lambda gates, timer: costs)
    # The times of tiny models are noise.
    monkeypatch.setattr(measured_budget, "kept_at_speedup", lambda run, objective, gates: objective.kept(gates))
    overrides = [x for x in inputs if not x.startswith("objective.")]
    numbers = run_here([*overrides, "objective.speedup=1.5"], tmp_path / "out")
    # Time is left for 0.667 - 0.29 = 0.377: 5 heads of 0.05 in all three blocks of 0.03.
    assert numbers["num_heads"] == 5
    out = capsys.readouterr().out
    budget = json.loads((tmp_path / "out" / "inputs.json").read_text())["budget"]
    assert budget == {"keep": round((1 / 1.5 - 0.29 - 0.09) / 0.6, 4), "cost": {"heads": 1.0}}
    # The settings that are printed give the same run without timings.
    settings = re.search(r"objective\.keep=\S+ 'objective\.cost=\S+'", out)[0].replace("'", "").split()
    assert run_here([*overrides, *settings], tmp_path / "again")["num_heads"] == 5
    one, two = weights_of(tmp_path / "out"), weights_of(tmp_path / "again")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_texts_longer_than_the_model_reads_are_cut_off(inputs, tmp_path):
    long = tmp_path / "long.tsv"
    long.write_text("text\tlabel\n" + "".join(f"{'word3 ' * 600}\t{label}\n" for label in ("first", "second")))
    files = [f"data.{split}={long}" for split in ("train", "validation", "test")]
    overrides = [*inputs, *files, "data.max_length=1000", "trainer.max_steps=2"]
    assert run_here(overrides, tmp_path / "out")["num_heads"] == 4


def test_half_precision_checkpoints_are_trained_in_full(inputs, tmp_path):
    folder = tmp_path / "half"
    shutil.copytree(Path(setting(inputs, "model.name")), folder)
    transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float16).save_pretrained(folder)
    run_here([*inputs, f"model.name={folder}"], tmp_path / "out")
    assert gating.load_compact(tmp_path / "out" / "compact").dtype == torch.float32


def test_half_precision_training_ends_in_a_proven_compact_model(inputs, tmp_path):
    numbers = run_here([*inputs, "trainer.precision=bf16-mixed"], tmp_path / "out")
    assert numbers["num_heads"] == 4
    assert gating.load_compact(tmp_path / "out" / "compact").dtype == torch.float32


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_compiled_training_ends_in_a_compact_model(inputs, tmp_path):
    numbers = run_here([*inputs, "compile=true"], tmp_path / "out")
    assert numbers["num_heads"] == 4
    weights = load_file(tmp_path / "out" / "compact" / "model.safetensors")
    assert not [name for name in weights if "_orig_mod" in name]


def test_sweep_jobs_have_folders_and_runs_of_their_own(inputs, tmp_path):
    process = run_command(["-m", *inputs, "objective.num_heads=2,3", f"output_dir={tmp_path / 'sweep'}"], cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    for job, num_heads in ((0, 2), (1, 3)):
        folder = tmp_path / "sweep" / str(job)
        assert json.loads((folder / "metrics.json").read_text())["num_heads"] == num_heads
        assert len(list((folder / "wandb").glob("offline-run-*"))) == 1


def test_run_is_finished_when_training_fails(inputs, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("training broke")

    monkeypatch.setattr("gating.run.execute.search", fail)
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(RuntimeError, match="training broke"):
        train.guarded_run(compose_settings([*inputs, f"output_dir={tmp_path / 'out'}"]))
    assert wandb.run is None


@pytest.mark.runs
@pytest.mark.first
def test_a_run_learns_from_its_own_dense_state(inputs, tmp_path):
    """The first half of its steps are those of a dense run with as many."""
    numbers = run_here([*inputs, "distillation=logits"], tmp_path / "out")
    assert numbers["num_heads"] == 4
    assert [numbers[name] for name in ("fine_tuning_steps", "search_steps")] == [6, 3]
    dense = [line for line in inputs if not line.startswith(("objective", "recovery=", "convergence"))]
    found = run_here([*dense, "objective=none", "trainer.max_steps=6"], tmp_path / "dense")
    for split in ("val", "test"):
        assert numbers[f"dense/{split}/accuracy"] == found[f"{split}/accuracy"]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("out/dense", "dense/compact"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_teacher_makes_a_difference(inputs, whole, tmp_path):
    for name in ("logits", "hidden"):
        run_here([*inputs, f"distillation={name}"], tmp_path / name)
    weights = [weights_of(folder) for folder in (whole, tmp_path / "logits", tmp_path / "hidden")]
    for one, two in combinations(weights, 2):
        assert any(not torch.equal(one[key], two[key]) for key in one if one[key].shape == two[key].shape)
